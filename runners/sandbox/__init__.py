"""The media processes: a pool client, the fork server, and the tasks that its children run.

Untrusted clips are parsed in these children and nowhere else. Requests and the model are not here.
"""
