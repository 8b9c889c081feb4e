"""Raw dataset rows: shortened for messages, without nulls of datasets."""
