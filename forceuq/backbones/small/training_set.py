"""Which molecules and alloys the small backbone is trained on, held out on, and must never see.

The chemistry of rMD17 and of the demonstration is covered by neighbours (aromatic rings with the same
substituents, azo and imine bonds, esters, amides, carboxylic acids), never by the molecules themselves.
"""

from itertools import combinations_with_replacement

# rMD17 (doi:10.48550/arXiv.2007.09593). Malonaldehyde stands as diketone and as its enol.
RMD17 = {
    "aspirin": ("CC(=O)Oc1ccccc1C(=O)O",),
    "azobenzene": ("c1ccc(N=Nc2ccccc2)cc1",),
    "benzene": ("c1ccccc1",),
    "ethanol": ("CCO",),
    "malonaldehyde": ("O=CCC=O", "O=CC=CO"),
    "naphthalene": ("c1ccc2ccccc2c1",),
    "paracetamol": ("CC(=O)Nc1ccc(O)cc1",),
    "salicylic acid": ("O=C(O)c1ccccc1O",),
    "toluene": ("Cc1ccccc1",),
    "uracil": ("O=c1cc[nH]c(=O)[nH]1",),
}
DEMO_MOLECULES = {
    "acetaldehyde": "CC=O",
    "methylamine": "CN",
    "methanol": "CO",
    "propene": "C=CC",
    "furan": "c1ccoc1",
    "acetamide": "CC(N)=O",
}
DEMO_ALLOYS = (
    ("Cu", "Au"),
    ("Al", "Ni"),
    ("Ag", "Pd"),
    ("Cu", "Pt"),
    ("Ni", "Pd"),
    ("Al", "Cu"),
    ("Au", "Ag"),
    ("Ni", "Pt"),
)
VALIDATION_MOLECULES = (
    "CCOC(C)=O",
    "Nc1ccccc1O",
    "c1ccc(N=Cc2ccccc2)cc1",
    "O=c1cc[nH]cc1",
    "CC(C)C=O",
    "COc1ccccc1C(=O)O",
    "CNC(=O)C=C",
    "O=[N+]([O-])c1ccccc1C",
    "c1ccc2[nH]ccc2c1",
    "CC(=O)CC(C)O",
)
VALIDATION_PAIRS = (("Al", "Au"), ("Ni", "Cu"))

_ALIPHATIC = """
C CC CCC CCCC CC(C)C CCCCC CC(C)(C)C C1CC1 C1CCC1 C1CCCC1 C1CCCCC1 C=C C=CCC CC=CC C=C(C)C C=CC=C C#C CC#C CC#CC
C1=CCCC1 C1=CCC=C1 C1=CCCCC1 C1=CC=CCC1 O OO COC CCCO CC(C)O CCOC OCCO COCCO C1CO1 C1CCO1 C1CCOC1 COCOC C=CO C=COC
CC=CO C=CCO C#CCO OC1CC1 CCCCO CC(C)(C)O CC(C)CO OCC(O)CO C=O CCC=O C=CC=O O=CC=O CC(C)=O CCC(C)=O CC(=O)C=O
CC(=O)CC=O CC(=O)CC(C)=O CC(=O)C=C(C)O CC(=O)C=CO O=CCCC=O O=CC(C)C=O CC=CC=O OCC=O COC=CC=O NC=CC=O O=C1CCC1
O=C1CCCC1 O=C1C=CCC1 O=C1C=CC(=O)C=C1 C=C=O C=C(O)C=O OC=O CC(=O)O CCC(=O)O OCC(=O)O CC(O)C(=O)O C=CC(=O)O
O=C(O)CC=O O=C(O)CC(=O)O O=C(O)C=CC(=O)O CC(=O)C(=O)O OC(=O)O COC=O CC(=O)OC C=COC(C)=O C=CC(=O)OC COC(=O)OC
CC(=O)OC(C)=O O=C1CCO1 O=C1CCCO1 O=C1C=CCO1 N CCN CNC CN(C)C CCCN CC(C)N NCCN C=CN C=CNC NCCO C1CN1 C1CCNC1
C1CCNCC1 C1COCCN1 NN CNN NO CON C=N CC=N CC=NC C=NC C=NN CC=NO CC(C)=NC N=CN CN=CN N=C(N)N C#N CC#N CCC#N C=CC#N
N#CC#N N#CCC#N NC#N CN=NC N=N CN=NCC C=CN=NC CC(C)N=NC(C)C C[N+](=O)[O-] CC[N+](=O)[O-] C=C[N+](=O)[O-]
CO[N+](=O)[O-] CN=O NC=O CNC=O CN(C)C=O CNC(C)=O CN(C)C(C)=O CCC(N)=O NC(N)=O CNC(N)=O NCC(N)=O NCC(=O)O CC(N)C(=O)O
C=CC(N)=O NC(=O)C(N)=O NC(=O)CC(N)=O O=CNC=O CC(=O)NC(C)=O COC(N)=O CNC(=O)OC O=C1CCN1 O=C1CCCN1 O=C1CCC(=O)N1
O=C1C=CC(=O)N1 O=C1CNC(=O)N1 O=C1CCNC(=O)N1 O=C1C=CNC1 O=C1NC=CN1 NC(=O)NC=C NC(=O)NC=CC=O O=CC=CNC=O N=C=O CN=C=O
"""
_AROMATIC = """
c1ccncc1 c1cccnc1C c1ccnc(C)c1 Cc1ccncc1 Nc1ccccn1 Oc1ccccn1 Oc1cccnc1 Nc1ccncc1 c1cnccn1 c1ccnnc1 c1cncnc1 c1ncncn1
Cc1ccncn1 Nc1ccncn1 Oc1ccncn1 c1cc[nH]c1 Cc1ccc[nH]1 Cn1cccc1 c1c[nH]cn1 Cn1ccnc1 c1cn[nH]c1 c1ncn[nH]1 c1cnoc1 c1ccon1
c1cocn1 Cc1ccco1 Cc1ccoc1 O=Cc1ccco1 O=Cc1ccc[nH]1 c1ccc2occc2c1 c1ccc2ncccc2c1 c1ccc2cnccc2c1 c1ccc2nccnc2c1
c1ccc2[nH]cnc2c1 c1ccc2[nH]ncc2c1 Cc1cccc2ccccc12 Cc1ccc2ccccc2c1 Oc1cccc2ccccc12 Oc1ccc2ccccc2c1 Nc1cccc2ccccc12
c1ccc2c(c1)CC2 c1ccc2c(c1)CCC2 c1ccc2c(c1)CCCC2 C1=Cc2ccccc2C1 c1ccc2c(c1)C=CCC2 c1ccc(-c2ccccc2)cc1 c1cc2cccc-2c1
c1ccc2cc3ccccc3cc2c1 c1cnc2ncccc2c1 O=c1cccc[nH]1 O=c1cc[nH]cn1 O=c1nccc[nH]1 O=c1ccnc[nH]1 Cc1c[nH]c(=O)[nH]c1=O
Cn1ccc(=O)[nH]c1=O Cn1c(=O)cc[nH]c1=O Cc1cc(=O)[nH]c(=O)[nH]1 Nc1cc[nH]c(=O)n1 O=c1ccn(C)c(=O)n1C O=c1[nH]cc[nH]c1=O
O=c1cn[nH]c(=O)[nH]1 O=C1C=CNC(=O)C1 O=C1NC=CC(=O)N1C O=c1cc[nH][nH]1 O=c1ccc(=O)[nH][nH]1 O=c1cccco1 O=c1ccocc1
O=C1NC(=O)c2ccccc21 O=C1OC(=O)c2ccccc21 O=C1OCc2ccccc21 O=C1NCc2ccccc21 O=C1Cc2ccccc2O1 O=C1Nc2ccccc2O1
CN=Nc1ccccc1 CCN=Nc1ccccc1 N=Nc1ccccc1 CN=Nc1ccc(C)cc1 CN=Nc1ccc(O)cc1 C=CN=Nc1ccccc1 c1ccc(N=Nc2ccncc2)cc1
c1cc(N=Nc2ccccn2)ccn1 Cc1ccc(N=Nc2ccccc2)cc1 Oc1ccc(N=Nc2ccccc2)cc1 c1ccc(N=Nc2ccc[nH]2)cc1 c1ccc(N=Nc2ccco2)cc1
CN=Cc1ccccc1 C=Nc1ccccc1 CC=Nc1ccccc1 N=Cc1ccccc1 Oc1ccccc1C=Nc1ccccc1 c1ccc(C=Cc2ccccc2)cc1 c1ccc(NNc2ccccc2)cc1
c1ccc(Nc2ccccc2)cc1 c1ccc(Oc2ccccc2)cc1 c1ccc(Cc2ccccc2)cc1 ON=Cc1ccccc1 NN=Cc1ccccc1 NNc1ccccc1
CC(=O)Nc1ccccc1O CC(=O)Nc1cccc(O)c1 CC(=O)Nc1ccc(C)cc1 CC(=O)Nc1ccc(N)cc1 CC(=O)Nc1ccc(OC)cc1 CNC(=O)c1ccc(O)cc1
CC(=O)N(C)c1ccccc1 CCC(=O)Nc1ccccc1 O=CNc1ccc(O)cc1 CC(=O)Nc1ccncc1 NC(=O)Nc1ccccc1 COC(=O)Nc1ccccc1
CC(=O)Oc1ccccc1C CC(=O)Oc1ccccc1C=O CC(=O)Oc1ccccc1O CC(=O)Oc1cccc(C(=O)O)c1 CC(=O)Oc1ccc(C(=O)O)cc1 O=COc1ccccc1C(=O)O
CC(=O)Oc1ccccc1C(N)=O CC(=O)Oc1ccccc1C(C)=O COC(=O)c1ccccc1O NC(=O)c1ccccc1O CC(=O)c1ccccc1O O=Cc1ccccc1O
O=C(O)c1cccc(O)c1 O=C(O)c1ccc(O)cc1 Cc1ccc(C(=O)O)c(O)c1 O=C(O)c1cccnc1O O=C(O)c1ccccc1N COC(=O)c1ccccc1OC(C)=O
CC(=O)OC=CC(=O)O OC=CC(=O)O O=C(O)c1ccoc1 O=C(O)c1ccccc1C(=O)O CCc1ccccc1 CC(C)c1ccccc1 Cc1ccccc1C Cc1cccc(C)c1
Cc1ccc(C)cc1 Cc1cc(C)cc(C)c1 C=Cc1ccccc1 C#Cc1ccccc1 OCc1ccccc1 NCc1ccccc1 O=CCc1ccccc1 N#CCc1ccccc1
"""
_SUBSTITUENTS = ("O", "N", "C(=O)O", "C=O", "OC", "C(N)=O", "[N+](=O)[O-]", "C#N", "NC(C)=O", "OC(C)=O", "C(C)=O", "C")


def forbidden_smiles() -> frozenset[str]:
    """Return the canonical SMILES of every molecule that the benchmark evaluates on."""
    from forceuq.data.generators.molecules import canonical_smiles

    names = [smiles for forms in RMD17.values() for smiles in forms] + list(DEMO_MOLECULES.values())
    return frozenset(canonical_smiles(smiles) for smiles in names)


def training_molecules() -> tuple[str, ...]:
    """Return the canonical SMILES of the training molecules, sorted: without forbidden and validation ones."""
    from forceuq.data.generators.molecules import canonical_smiles

    listed = _ALIPHATIC.split() + _AROMATIC.split()
    listed += [f"c1ccccc1{substituent}" for substituent in _SUBSTITUENTS]
    # Para and meta in turn; the crowded ortho pairs that matter are listed above.
    for index, (first, second) in enumerate(combinations_with_replacement(_SUBSTITUENTS[:8], 2)):
        listed.append(f"c1({first})ccc({second})cc1" if index % 2 else f"c1({first})cccc({second})c1")
    kept = {canonical_smiles(smiles) for smiles in listed}
    return tuple(sorted(kept - forbidden_smiles() - set(validation_molecules())))


def validation_molecules() -> tuple[str, ...]:
    """Return the canonical SMILES of the molecules that the backbone's error is reported on."""
    from forceuq.data.generators.molecules import canonical_smiles

    return tuple(sorted(canonical_smiles(smiles) for smiles in VALIDATION_MOLECULES))


def training_pairs() -> tuple[tuple[str, str], ...]:
    """Return the binary systems that the backbone is trained on."""
    from forceuq.data.generators.alloys import binary_pairs

    return binary_pairs((*DEMO_ALLOYS, *VALIDATION_PAIRS))
