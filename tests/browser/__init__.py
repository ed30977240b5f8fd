"""The page in a real browser, as readers use it."""
