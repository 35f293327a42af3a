"""The web page (Gradio), which runs in a process of its own and calls the public HTTP API."""
