"""One module a screen. `page` is what they share; `catalog` lists them."""
