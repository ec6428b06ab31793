"""Other networks, and what a checkpoint holds.

checkpoint.py  to disk and back
unet.py        CosyVoice2's U-Net
own.py         a network of your own, whole
f5.py          F5-TTS's published weights
"""
