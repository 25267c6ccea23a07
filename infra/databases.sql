-- Beside the ledger, which POSTGRES_DB names: MLflow's runs, and its users.
CREATE DATABASE mlflow;
CREATE DATABASE mlflow_auth;
