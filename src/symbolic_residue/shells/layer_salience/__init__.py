"""LAYER-SALIENCE: what does the model stop looking at, and did it matter?"""

from symbolic_residue.shells.layer_salience._attribute import CarrierTest
from symbolic_residue.shells.layer_salience._cancel import cancel, Cancellation, exchanged
from symbolic_residue.shells.layer_salience._config import Criteria, LayerSalienceConfig
from symbolic_residue.shells.layer_salience._findings import LayerSalienceFindings
from symbolic_residue.shells.layer_salience._items import SalienceItem
from symbolic_residue.shells.layer_salience._references import reference_texts
from symbolic_residue.shells.layer_salience._residue import LayerSalienceResidue
from symbolic_residue.shells.layer_salience._sense import Salience
from symbolic_residue.shells.layer_salience._shell import LayerSalienceShell
from symbolic_residue.shells.layer_salience._tokens import token_kinds

__all__ = [
    "Cancellation",
    "CarrierTest",
    "Criteria",
    "LayerSalienceConfig",
    "LayerSalienceFindings",
    "LayerSalienceResidue",
    "LayerSalienceShell",
    "Salience",
    "SalienceItem",
    "cancel",
    "exchanged",
    "reference_texts",
    "token_kinds",
]
