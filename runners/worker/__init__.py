"""The GPU process: worker, scheduler, engine and calibration.

Only this folder loads the model.
"""
