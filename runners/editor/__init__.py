"""The editor: a page of plain ES modules that calls the public API from the browser.

Its files are in `assets/`, with a vendored copy of wavesurfer.js in `assets/vendor/`. Nothing here
computes sound or keeps anything on the server. The Gradio page is in `runners/page/`.
"""
