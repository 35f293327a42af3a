"""RunPod's serverless queue: the handler, and fetching clips by address with SSRF protection."""
