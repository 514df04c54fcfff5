"""P-former: Restormer with prompt-gated experts, the coarse stage."""
