"""The model as torch modules, in a form that traces: attribute names are the checkpoint's names."""
