"""An artifact folder: its manifest, and its files checked before they are used."""
