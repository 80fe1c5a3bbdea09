"""JPEGs alone: their headers, their decoding by a GPU, and whether its pixels can be trusted."""
