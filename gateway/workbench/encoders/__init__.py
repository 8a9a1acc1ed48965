"""Make an encoder of a local BERT-type folder."""
