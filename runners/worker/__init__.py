"""The GPU process: calls of the API, worker, scheduler, engine and calibration.

Only this folder loads the model.
"""
