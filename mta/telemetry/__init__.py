"""How the program tells what it does: structured logs, and words to systemd. Imports nothing else of ours."""
