"""Release card and citation of a release: YAML made from the catalogue and the guarantee.

The card has the layout of the OpenDP deployments registry (product, dp_flavor, privacy_loss, model, accounting,
implementation, resources), so that a release can be entered there as it is. Not here: any number from data.
"""

from __future__ import annotations

from typing import Any

import yaml

from assets.contract.city import City
from assets.publication.catalogue import Dataset
from assets.publication.documents import membership
from assets.publication.guarantee import Guarantee

CFF_VERSION = "1.2.0"
LAYOUT = "OpenDP deployments registry"


def _yaml(value: Any) -> bytes:
    text: str = yaml.safe_dump(value, allow_unicode=True, sort_keys=False, width=110)
    return text.encode()


def _levels(dataset: Dataset, promise: Guarantee) -> list[dict[str, Any]]:
    """Expected errors of the levels this dataset is made from."""
    mine = {(x.time, x.dimensions) for x in dataset.levels}
    return [e for e in promise.errors if (e["time_level"], e["dimensions"]) in mine and e["care"] in dataset.care]


def _changes(city: City) -> str:
    """Clinics that joined or left, in brackets; nothing where none did."""
    found = [f"{c.key} {text}" for c in city.clinics for text in membership(c)]
    return f" ({'; '.join(found)})" if found else ""


_COMPOSITION = {
    "rho": "Sum of rho over all noisy tables of a window; conversion to epsilon by Canonne, Kamath and Steinke (2020).",
    "epsilon": "Sum of epsilon over all noisy tables of a window, and of the years. Delta holds what the 53-bit sampler of the "
    "noise differs from the exact distribution; it is of one window and adds up too.",
}


def _flavor(promise: Guarantee) -> dict[str, Any]:
    """Kind of differential privacy, and its bound in the currency of the noise."""
    pure = promise.noise.column == "epsilon"
    return {
        "name": "Pure DP (but for delta)" if pure else "Zero-concentrated DP",
        "input_metric": "symmetric distance on patients (add or remove)",
        "bound_on_input_distance": 1,
        "output_measure": "max divergence" if pure else "zero-concentrated divergence",
        "bound_on_output_distance": promise.cost,
    }


def release_card(dataset: Dataset, city: City, version: str, promise: Guarantee) -> bytes:
    """`release-card.yaml`: unit, bounds, mechanism, ρ where the noise is paid in it, ε of one and five years, δ, MAE of each level."""
    note = " Synthetic demonstration data: no real person stands behind any number." if city.synthetic else ""
    card = {
        "url_slug": f"{city.key}-{dataset.key}-{version}".replace("_", "-").replace(".", "-"),
        "status": "Draft" if city.synthetic else "Published",
        "layout": LAYOUT,
        "deployment": {
            "product": {
                "name": f"{dataset.title.en}: {city.name.en}",
                "data_curators": [city.publication.publisher],
                "intended_use": "Open statistics for analysts, portals, journalists and citizens.",
                "data_product_type": "Summary statistics",
                "data_product_region": f"{city.name.en} (ARS {city.region.ars})",
                "description": dataset.description.en + note,
                "publication_date": version[:10],
                "data_product_sector": "Health",
            },
            "dp_flavor": {
                **_flavor(promise),
                "data_domain": "hospital cases of consenting patients, in public categories only",
                "unprotected_quantities": "Public lists of areas, age groups, ICD-10-GM chapters; the city's resident "
                f"figures; which clinics take part, and when{_changes(city)}. Nothing is tuned or suppressed on true counts.",
            },
            "privacy_loss": {
                "privacy_unit": "Person-level",
                "privacy_unit_description": promise.unit,
                "contribution_bounds": promise.caps,
                "truncation_share": promise.truncation_share,
                "privacy_parameters": {
                    **({"rho": promise.cost} if promise.noise.column == "rho" else {}),
                    "epsilon_one_year": promise.epsilon_one_year,
                    "epsilon_five_years": promise.epsilon_five_years,
                    "delta": promise.delta,
                    **({"earlier_windows": list(promise.former)} if promise.former else {}),
                },
                "privacy_parameters_description": "For all tables of the plan and all corrections of weeks together, over "
                f"one budget window of {promise.window_days} days; not for this dataset alone.",
            },
            "model": {
                "model_name": "Central",
                "model_name_description": "Clinics deliver consented cases to the city's connector, which bounds, "
                "counts and adds noise in one step; only noisy values leave it.",
                "release_type": "Many releases",
                "release_type_description": "Every measurement is drawn once and only re-read later; a version "
                "never changes, and later versions add measurements inside the same budget.",
                "data_source_type": "Dynamic",
                "access_type": "Non-interactive",
            },
            "accounting": {
                "composition": _COMPOSITION[promise.noise.column],
                "post_processing": "Consistent weighted least squares over all noisy tables; rates, ratios and "
                "quantiles from the consistent estimates.",
                "tables": list(promise.tables),
                "corrections": {promise.noise.column: promise.corrections},
            },
            "implementation": {
                "mechanisms": promise.mechanism,
                "pre_processing_eda_hyperparameter_tuning": "Contribution bounding in order of arrival, over the "
                "whole window. No parameter was tuned on the data.",
                "justification": "A window-wide bound lets all daily tables share one yearly budget.",
                "accuracy": {"measure": "mean absolute error of the noise", "levels": _levels(dataset, promise)},
            },
            "resources": {
                "sources": f"{city.publication.base_url}/{dataset.key}/{version}/README.md",
                "registry_authors": [city.publication.publisher],
            },
        },
    }
    return _yaml(card)


def citation(dataset: Dataset, city: City, version: str) -> bytes:
    """`CITATION.cff` of a release."""
    about = city.publication
    return _yaml(
        {
            "cff-version": CFF_VERSION,
            "message": "Please cite this dataset as below.",
            "type": "dataset",
            "title": f"{dataset.title.en}: {city.name.en}"
            + (" (synthetic demonstration data)" if city.synthetic else ""),
            "abstract": dataset.description.en,
            "authors": [{"name": about.publisher, "email": about.contact_email}],
            "version": version,
            "date-released": version[:10],
            "license-url": about.licence,
            "url": f"{about.base_url}/{dataset.key}/{version}/",
            "keywords": list(dataset.keywords),
        }
    )
