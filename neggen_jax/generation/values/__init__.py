"""What a catalogue knows of its items' attributes and their values."""
