"""An artifact served over HTTP, in the dialect of OpenAI's chat API; needs `kimivl[serve]`.

`serving.py` is the way in. All other modules may import what the extra installs, and are imported
only behind its check.
"""
