"""Other networks, and what a checkpoint holds.

checkpoint.py  to disk and back; the list of all networks
durations.py   how long each symbol lasts
e2.py          E2-TTS's frame of time
f5_net.py      F5-TTS's network, without durations
f5.py          F5-TTS's published weights for it
unet.py        CosyVoice2's U-Net
own.py         a network of your own, whole
"""
