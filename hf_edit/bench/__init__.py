"""Methods beside baselines, on data sets, under one evaluator."""
