"""Who permitted what: the consent rule, a decision with a reason for each case, nothing unconsented passes."""
