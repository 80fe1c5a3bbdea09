"""Models that hear clips of sound: their tasks, and the numbers of their feature extractors.

In: a directory and the class that its config names. Out: its facts. Begin with `audio_facts.py`. No
extractor of a directory is run: `extractor.py` reads numbers for classes of an allow-list.
"""
