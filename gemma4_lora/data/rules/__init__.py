"""Rules for conversations of any layout, before they are trained on."""
