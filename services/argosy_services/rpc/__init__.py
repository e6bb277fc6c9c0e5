"""What every service needs around its logic: deadlines, admission, metrics, request ids and the mapping of errors."""
