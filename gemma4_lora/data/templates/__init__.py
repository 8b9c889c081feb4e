"""Chat templates: dialog's and Google's."""
