"""What an artifact does on this machine: speed, start, memory, and the roof over it."""
