"""The demo: its edits, its command, and the script that opens the pack without hf_edit."""
