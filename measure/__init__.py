"""What is measured.

evaluate.py  checkpoints on the same sentences: words, predicted quality, voice, distance, speed
page.py      a page to listen to
speed.py     real-time factors
ablation.py  every method at an equal budget
"""
