"""What a user gives: pictures and words, as pixels and token ids."""
