"""The web page (Gradio). It runs in a process of its own and calls the public HTTP API.

`proxy` runs in the API's processes and imports no Gradio; the other modules run in the page's.
"""
