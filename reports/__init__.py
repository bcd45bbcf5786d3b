"""From records to tables, figures and one HTML file; imports no torch, ray or mlflow."""
