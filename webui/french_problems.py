"""Sentences about the learning rate, trackers and seeds in French, as patterns of the English ones; see french.py."""

MORE_PROBLEMS = [
    (r"seed is (.+), it must be below 2\^63", r"seed vaut \1, il faut moins de 2^63"),
    (
        r"tracker_project_name is (.+), for W&B it must have 1 to 128 characters, none of them (.+)",
        r"tracker_project_name vaut \1, W&B veut de 1 à 128 caractères, sans \2",
    ),
    (
        r"adafactor with relative_step=True finds the learning rate itself: give --learning_rate None",
        "adafactor avec relative_step=True trouve lui-même le taux d'apprentissage : donnez --learning_rate None",
    ),
    (
        r"learning_rate is None, it must be a number; None is for adafactor with .+",
        "learning_rate vaut None, il faut un nombre ; None est pour adafactor avec --optimizer_args relative_step=True, "
        "et pour un optimiseur module.Classe qui a son propre taux",
    ),
    (
        r"(.+) changes the learning rate: leave it out with learning_rate None",
        r"\1 change le taux d'apprentissage : à omettre avec learning_rate None",
    ),
]
