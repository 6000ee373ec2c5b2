"""What commands do: one function each, called with the `Run` and the parameters of the table."""
