"""Export of a local BERT-type folder as an encoder."""
