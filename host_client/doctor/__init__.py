"""`wherry doctor`: what Wherry needs of this computer and what other products left behind.

Each check is a function that yields findings; none needs root, starts an engine or writes anything. What is
safe to repair is repaired by a finding's own `fix`, and only when the user asked for it.
"""
