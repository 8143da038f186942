"""The demo city: synthetic residents, hospital cases, consents and dirt, delivered as three clinics would."""
