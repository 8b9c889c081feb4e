"""Low-rank branches inside the calls of linears."""
