"""What a catalogue knows of its items' attributes and their values.

contrast.py  when two values are the same in other words
seen.py      which values were seen together, and which attribute tells
             another
mining.py    attributes that titles and texts tell, by words.toml
"""
