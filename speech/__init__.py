"""Everything between a person and symbols or mels: writing, recordings, sound.

audio.py    audio files -> sound of one level
text.py     written text -> symbols; markdown.py: what a page does not show; english.py: what gruut misreads
align.py    how long each symbol of a recording lasts
corpora.py  folders of recordings as people have them
prepare.py  those folders -> mels on disk, checked
vocoder.py  mel -> sound; phases.py: its phases; discriminators.py: what judges it in training
voices.py   texts -> chunks, prompts -> voices, symbols -> durations
f5_text.py  the same for F5-TTS
judges.py   what judges audio: words, predicted quality, voice, prosody
labels.py   words in tables and folders that name no speaker
"""
