"""French for every field of both configs: label, help. A test asks for each field; add its line here."""

FIELDS = {
    "PreprocessConfig": {
        "input_dir": (
            "Dossier source",
            "Dossier d'images .png, .jpg, .jpeg, .webp et .gif ; les sous-dossiers sont lus aussi. Rien n'y est écrit.",
        ),
        "output_dir": (
            "Nom du jeu de données",
            "Dossier du jeu de données : images/, metadata.jsonl, README.md et preprocess_report.json.",
        ),
        "trigger_word": (
            "Mot déclencheur",
            "Mot placé devant chaque légende, qui appellera le concept, par ex. « sks ». Jamais placé deux fois.",
        ),
        "resolution": (
            "Résolution",
            "Côté en pixels du carré dont chaque image préparée remplit l'aire ; un multiple de 8.",
        ),
        "buckets": (
            "Formats multiples",
            "on : chaque image reçoit la taille aux proportions les plus proches ; off : toutes reçoivent le carré.",
        ),
        "bucket_step": (
            "Pas des formats",
            "Les côtés des formats sont des multiples de ce nombre de pixels ; un multiple de 8.",
        ),
        "max_aspect": ("Proportion maximale", "Côté long / côté court d'un format, au plus."),
        "no_upscale": (
            "Ne pas agrandir",
            "Mettre les images trop petites pour leur format dans un plus petit au lieu de les écarter.",
        ),
        "enlarge_small": (
            "Agrandir les petites",
            "Agrandir les images trop petites pour leur format au lieu de les écarter.",
        ),
        "min_bucket_side": (
            "Côté minimal d'un format",
            "Avec no_upscale : côté le plus court d'un format, en pixels. Par défaut : la moitié de la résolution.",
        ),
        "crop": (
            "Recadrage",
            "Où couper ce qui n'entre pas dans le format : au centre, autour de ce qui attire l'œil, ou au hasard.",
        ),
        "crops_per_picture": (
            "Recadrages par image",
            "Avec --crop random : nombre de recadrages par image, chacun un exemple à part.",
        ),
        "seed": ("Graine", "Fixe les endroits des recadrages au hasard."),
        "background": ("Fond", "Rouge, vert, bleu (0-255) derrière les images transparentes."),
        "max_megapixels": (
            "Mégapixels au plus",
            "Les images plus grandes sont écartées : il leur faut 3 Mo de mémoire par mégapixel, plusieurs fois.",
        ),
        "image_format": (
            "Format de fichier",
            "png et webp sont sans perte, webp un tiers plus petit et plus lent ; jpg (qualité 95, 4:4:4) un sixième.",
        ),
        "masks": (
            "Masques",
            "Masques, blancs là où la perte compte : de la transparence, de masks/<nom>.png à côté des images, ou du "
            "détoureur rembg s'il est installé.",
        ),
        "class_images": (
            "Images de la classe",
            "Dossier d'images de la classe, pour préserver l'acquis ; sans mot déclencheur, avec une colonne "
            "is_class_image.",
        ),
        "caption_model": (
            "Modèle de légendes",
            "Légende les images sans fichier de légende : Florence-2, une variante dans son format, ou tout modèle "
            "image-texte de transformers ; un nom du Hub ou un dossier ; « none » pour aucun.",
        ),
        "caption_task": (
            "Tâche de légende",
            "Ce qu'on demande à Florence-2 : <CAPTION>, <DETAILED_CAPTION>, <MORE_DETAILED_CAPTION>, ou la tâche d'une "
            "variante.",
        ),
        "caption_prompt": (
            "Consigne de légende",
            "Ce qu'on demande à d'autres modèles, ou le début de la légende.",
        ),
        "caption_batch_size": (
            "Images légendées à la fois",
            "Au plus ; moitié moins où le GPU est trop petit. Par défaut : doublé depuis 1 selon la mémoire, jusqu'à "
            "64, jusqu'à 8 sans GPU.",
        ),
        "caption_num_beams": ("Faisceaux", "Faisceaux de la recherche d'une légende ; 1 est le plus rapide."),
        "caption_max_new_tokens": ("Légende la plus longue", "En jetons du modèle de légendes."),
        "caption_dtype": (
            "Précision des légendes",
            "Précision du modèle de légendes ; auto : bfloat16 sur un GPU qui le calcule, float16 sur les plus anciens, "
            "float32 ailleurs.",
        ),
        "caption_attention": ("Attention des légendes", "Attention du modèle de légendes."),
        "ocr": (
            "Chercher de l'écriture",
            "Florence-2 cherche de l'écriture dans les images (filigranes, signatures) et en avertit.",
        ),
        "fallback_caption": (
            "Concept",
            "Légende des images sans fichier de légende quand caption_model est « none ».",
        ),
        "caption_prefix": ("Préfixe des légendes", "Mots devant chaque légende, après le mot déclencheur."),
        "caption_suffix": ("Suffixe des légendes", "Mots derrière chaque légende."),
        "clean_captions": (
            "Nettoyer les légendes",
            "Ôter les formules du modèle (« The image shows ... ») ; le rapport montre chaque changement.",
        ),
        "tokenizer": (
            "Découpeur en jetons",
            "Découpeur CLIP qui compte les jetons des légendes : dossier ou nom Hub d'une base SDXL. Par défaut : "
            "celui de SDXL 1.0 s'il est sur cette machine, sinon mots et signes sont comptés, un minimum.",
        ),
        "recaption": (
            "Refaire les légendes",
            "Refaire toutes les légendes, même retouchées ; les anciennes sont gardées dans "
            ".preprocess/before_recaption.jsonl.",
        ),
        "part": (
            "Une part des images",
            "Ne préparer et légender que cette part des images, p. ex. 3/16, sans rien publier : pour autant de travaux à "
            "la fois qu'on veut. La même commande sans cette option assemble ensuite le jeu de données.",
        ),
        "dry_run": (
            "À blanc",
            "Montrer ce qui serait fait, d'après les en-têtes des fichiers seulement, sans rien écrire.",
        ),
        "format": (
            "Forme du jeu de données",
            "parquet : écrit aussi parquet/, des fichiers contenant les images, pour le Hub et les grappes.",
        ),
        "max_shard_mb": ("Taille d'un fichier parquet", "En Mo, au plus (ou une image)."),
        "push_to_hub": (
            "Envoyer au Hub",
            "Envoyer le jeu de données au Hub, avec sa fiche : les fichiers parquet si demandés, sinon le dossier.",
        ),
        "hub_dataset_id": (
            "Dépôt sur le Hub",
            "Dépôt où envoyer, utilisateur/nom. Par défaut : le nom du dossier, sous le compte connecté.",
        ),
        "hub_private": ("Dépôt privé", "Créer ce dépôt comme privé."),
        "num_workers": (
            "Processus",
            "Processus qui décodent et recadrent ; 0 pour celui de la commande seul. Par défaut : les cœurs, 8 au "
            "plus.",
        ),
        "strict": (
            "Strict",
            "S'arrêter avec le code 3, sans rien publier, si une image devait être écartée.",
        ),
        "restore_deleted": (
            "Rétablir les supprimées",
            "Reprendre les images dont la ligne a été ôtée de metadata.jsonl à la main.",
        ),
        "train_batch_size": (
            "Taille de lot prévue",
            "Taille de lot prévue pour l'entraînement : les formats qui ont moins d'images sont signalés.",
        ),
    },
    "TrainConfig": {
        "output_dir": (
            "Nom de l'entraînement",
            "Dossier de l'entraînement : config.yaml, events.jsonl, checkpoint-<pas>/, samples/ et les fichiers LoRA.",
        ),
        "memory_budget": (
            "Budget de mémoire",
            "Mémoire du GPU à utiliser, p. ex. 8GB : choisit ce qui est recalculé, l'optimiseur en 8 bits et la précision de "
            "la base, et dit à quoi s'attendre.",
        ),
        "pretrained_model_name_or_path": (
            "Modèle de base",
            "Un dossier diffusers, un nom du Hub, ou un fichier .safetensors dans la disposition d'origine.",
        ),
        "pretrained_vae_model_name_or_path": (
            "VAE",
            "VAE à utiliser au lieu de celui de la base : un dossier diffusers, un nom du Hub ou un fichier .safetensors.",
        ),
        "pretrained_config_name_or_path": (
            "Configurations de la base",
            "Pour une base en un fichier .safetensors : dossier diffusers ou nom du Hub avec ses configurations et "
            "découpeurs. Par défaut : stabilityai/stable-diffusion-xl-base-1.0 du Hub.",
        ),
        "revision": ("Révision", "Révision Git d'une base du Hub."),
        "variant": ("Variante", "Variante des poids d'une base diffusers, par ex. « fp16 »."),
        "train_data_dir": (
            "Jeu de données",
            "Dossier d'images : ce que la préparation a écrit, ou des images avec des légendes .txt à côté.",
        ),
        "dataset_name": (
            "Jeu de données du Hub",
            "À la place : jeu de données du Hub, ou dossier écrit par save_to_disk de datasets.",
        ),
        "datasets": (
            "Jeux de données",
            "À la place des deux : plusieurs jeux, chacun un dossier comme data/cat, avec des répétitions par époque "
            "data/cat:3, ou « {train_data_dir: data/cat, repeats: 3} » avec d'autres clés dataset_name, "
            "dataset_config_name, trigger_word (mis devant les légendes), is_class_images, et au lieu de repeats weight, "
            "la part des tours.",
        ),
        "dataset_streaming": (
            "Lecture au fil de l'eau",
            "Lire les images à mesure qu'elles viennent, si nombreuses soient-elles, de fichiers .tar (WebDataset) ou .parquet dans train_data_dir ou du Hub, et les encoder à chaque tour. Demande max_train_steps.",
        ),
        "shuffle_buffer_size": (
            "Images mélangées ensemble",
            "Combien d'images d'un flux sont mélangées à la fois dans chaque processus ; 1 les laisse dans l'ordre des fichiers. Jusqu'à deux fois autant attendent en mémoire, telles que dans les fichiers.",
        ),
        "dataset_config_name": ("Configuration du jeu du Hub", "Configuration du jeu de données du Hub."),
        "image_column": ("Colonne des images", "Colonne du jeu de données qui contient les images."),
        "caption_column": ("Colonne des légendes", "Colonne du jeu de données qui contient les légendes."),
        "max_train_samples": ("Images au plus", "N'utiliser que les N premières images de chaque jeu."),
        "resolution": (
            "Résolution",
            "Les images que la préparation n'a pas mises en taille sont recadrées à ce carré, en pixels ; un multiple "
            "de 8.",
        ),
        "center_crop": (
            "Recadrer au centre",
            "Recadrer ces images en leur centre ; sinon à un endroit tiré une fois par image de la graine.",
        ),
        "random_flip": ("Miroir au hasard", "Retourner une image de gauche à droite une fois sur deux."),
        "rank": ("Rang", "Rang des matrices LoRA."),
        "lora_alpha": ("Alpha", "Le LoRA est multiplié par alpha / rang. Par défaut : alpha = rang."),
        "lora_dropout": ("Dropout du LoRA", "Part des entrées d'une couche LoRA mise à zéro à l'entraînement."),
        "rank_dropout": (
            "Dropout des rangs",
            "Part des rangs d'une couche LoRA mise à zéro à l'entraînement, d'autres pour chaque image ; pour LoHa et "
            "LoKr, de leurs lignes.",
        ),
        "module_dropout": (
            "Dropout des modules",
            "Part des couches dont l'adaptateur ne fait rien, d'autres à chaque passage.",
        ),
        "init_lora_weights": (
            "Poids de départ",
            "Comment commence le LoRA : kaiming, gaussian ou orthogonal, sans rien changer ; pissa, pissa_niter_4 (plus "
            "rapide) ou olora, comme les directions principales des poids de la base, qui apprennent plus vite. Le "
            "fichier contient le changement de la base d'origine, alors au double du rang.",
        ),
        "init_lora": (
            "LoRA de départ",
            "Continuer d'entraîner ce LoRA, un fichier de toute disposition ou un dossier PEFT : ses modules, rangs et "
            "alphas remplacent rank, lora_alpha et target_modules.",
        ),
        "adapter": (
            "Adaptateur",
            "Sorte d'adaptateur. LoHa et LoKr vont entiers à ComfyUI, A1111, Forge et InvokeAI, à diffusers comme le "
            "LoRA le plus proche.",
        ),
        "use_dora": (
            "DoRA",
            "Un LoRA dont les grandeurs s'entraînent aussi. Entier dans le fichier diffusers, au plus proche dans "
            "l'autre.",
        ),
        "use_rslora": ("rsLoRA", "Multiplier par alpha / racine(rang), ce qui garde les grands rangs actifs."),
        "target_modules": (
            "Modules visés",
            "Modules du UNet qui reçoivent un LoRA : attention, attention+ff, all-linear, all-linear+conv, ou une "
            "expression régulière.",
        ),
        "block_ranks": (
            "Rangs par bloc",
            "Autres rangs pour des blocs du UNet, par ex. down=4 up.0=32 up.0.2=0 ; 0 laisse un bloc de côté, alpha / "
            "rang reste. Les blocs sont down, mid, up, un niveau comme down.1 ou un de ses blocs comme up.0.2 ; le nom "
            "le plus long compte.",
        ),
        "block_lr_factors": (
            "Taux par bloc",
            "Facteurs du taux d'apprentissage pour des blocs du UNet, nommés de même, par ex. down=0.5 mid=1 up.1=2.",
        ),
        "train_text_encoder": (
            "Entraîner aussi les encodeurs de texte",
            "Entraîner aussi un LoRA sur les deux encodeurs de texte ; les légendes sont alors encodées à chaque pas.",
        ),
        "text_encoder_lr": (
            "Taux des encodeurs de texte",
            "Taux d'apprentissage maximal des encodeurs de texte. Par défaut : learning_rate.",
        ),
        "text_encoder_2_lr": (
            "Taux du second encodeur",
            "Taux d'apprentissage maximal du second encodeur de texte. Par défaut : text_encoder_lr.",
        ),
        "stop_text_encoder_training": (
            "Fin des encodeurs de texte",
            "Après cette part des pas, de 0 à 1, les encodeurs de texte restent tels quels.",
        ),
        "prediction_type": ("Type de prédiction", "Ce que prédit le UNet. Par défaut : ce que dit la base."),
        "loss_type": (
            "Type de perte",
            "Erreur au carré, ou une qui croît linéairement à partir de huber_c : les images étranges tirent moins.",
        ),
        "huber_c": ("Seuil de Huber", "Erreur à partir de laquelle huber et smooth_l1 croissent linéairement."),
        "huber_schedule": (
            "Cours du seuil de Huber",
            "huber_c à chaque instant de bruit, ou plus grand là où il y a moins de bruit.",
        ),
        "snr_gamma": (
            "Gamma SNR",
            "Poids min-SNR des instants : les moins bruités comptent moins ; 5 est usuel. Juste pour epsilon et "
            "v-prediction.",
        ),
        "debiased_estimation": (
            "Estimation débiaisée",
            "Au lieu de snr_gamma : des poids qui font compter plus les instants bruités, pour epsilon.",
        ),
        "zero_terminal_snr": (
            "SNR final nul",
            "Le dernier instant est du bruit seul, à l'entraînement et dans les échantillons. Pour les bases qui "
            "prédisent v et furent entraînées ainsi.",
        ),
        "noise_offset": (
            "Décalage du bruit",
            "Ajoute au bruit un nombre au hasard par canal, fois ceci, pour apprendre les images sombres et claires ; "
            "0.03 à 0.1.",
        ),
        "input_perturbation": (
            "Perturbation de l'entrée",
            "Force d'un bruit de plus dans ce que voit le UNet, qu'il ne doit pas prédire ; 0.1 est usuel.",
        ),
        "multires_noise_iterations": (
            "Bruits grossiers",
            "Ajoute tant de bruits plus grossiers (bruit en pyramide), dans le même but que noise_offset ; 6 est "
            "usuel.",
        ),
        "multires_noise_discount": (
            "Force des bruits grossiers",
            "Force de chaque bruit plus grossier par rapport au précédent.",
        ),
        "masked_loss": (
            "Perte masquée",
            "Ne compter la perte que là où les masques sont blancs, par aire blanche ; sans masque, l'image compte "
            "entière.",
        ),
        "prior_loss_weight": (
            "Poids des images de classe",
            "Poids des images marquées dans la colonne is_class_image (préservation de l'acquis).",
        ),
        "min_timestep": (
            "Premier instant",
            "Entraîner sur les instants de bruit à partir d'ici ; 0 est presque l'image.",
        ),
        "max_timestep": (
            "Dernier instant",
            "Entraîner sur les instants au-dessous. Par défaut : le nombre d'instants de la base, 1000, presque du "
            "bruit.",
        ),
        "timestep_sampling": (
            "Tirage des instants",
            "Combien de fois quel instant est tiré ; docs/timestep_densities.png le montre.",
        ),
        "logit_mean": (
            "Moyenne logit",
            "Moyenne de logit_normal ; au-dessus de 0, les instants bruités viennent plus souvent.",
        ),
        "logit_std": ("Écart-type logit", "Écart-type de logit_normal ; au-dessus de 0."),
        "timestep_beta_alpha": (
            "Beta : alpha",
            "Premier paramètre de beta ; plus grand, les instants bruités viennent plus souvent.",
        ),
        "timestep_beta_beta": (
            "Beta : beta",
            "Second paramètre de beta ; plus grand, les instants peu bruités viennent plus souvent.",
        ),
        "timestep_bias_strategy": (
            "Biais des instants",
            "Tirer plus souvent les instants les moins bruités, les plus bruités, ou un intervalle.",
        ),
        "timestep_bias_multiplier": ("Biais : facteur", "Combien de fois plus souvent."),
        "timestep_bias_portion": ("Biais : part", "Part des instants que désignent earlier et later."),
        "timestep_bias_begin": ("Biais : début", "Premier instant de l'intervalle."),
        "timestep_bias_end": ("Biais : fin", "Fin de l'intervalle, non comprise."),
        "proportion_empty_prompts": (
            "Part de légendes vides",
            "Part des tours où le texte vide remplace la légende, pour le guidage sans classifieur ; 0.1 est usuel.",
        ),
        "shuffle_caption": (
            "Mêler les étiquettes",
            "Mettre les étiquettes d'une légende, ce qui est entre virgules, dans un autre ordre à chaque tour.",
        ),
        "keep_tokens": (
            "Étiquettes fixes",
            "Tant d'étiquettes du début ne sont ni déplacées ni omises : 1 pour un mot déclencheur devant.",
        ),
        "keep_tokens_separator": (
            "Séparateur des fixes",
            "Si ce texte est dans une légende, toutes les étiquettes devant lui restent, et il est ôté ; par ex. "
            "« ||| ».",
        ),
        "caption_separator": ("Séparateur d'étiquettes", "Ce qui sépare les étiquettes."),
        "caption_tag_dropout_rate": ("Omission d'étiquettes", "Part des étiquettes omises, d'autres à chaque tour."),
        "enable_wildcard": (
            "Variantes",
            "Choisir une de {red|green|blue} dans une légende à chaque tour ; les choix peuvent en contenir d'autres.",
        ),
        "max_caption_chunks": (
            "Morceaux de légende",
            "Légendes et textes d'échantillons sont lus en tant de morceaux de 75 jetons ; 3 pour 225 jetons au plus.",
        ),
        "cache_latents": (
            "Garder les latents",
            "Encoder chaque image une fois et garder ses latents sur le disque. Sans cela le VAE reste dans la mémoire du GPU et encode les images à chaque tour.",
        ),
        "cache_text_embeddings": (
            "Garder les légendes encodées",
            "Encoder chaque légende une fois et garder ses embeddings. Sans cela, ou où les légendes varient trop, les encodeurs de texte restent ; où ils sont entraînés, les légendes sont encodées à chaque tour de toute façon.",
        ),
        "max_cached_captions": (
            "Légendes en cache",
            "Si les légendes varient, garder les encodages de toutes celles qui viendront jusqu'à ce nombre (environ "
            "0,3 Mo chacune, par morceau) ; au-delà, garder les encodeurs (1,5 Gio de mémoire GPU) et encoder à chaque "
            "pas.",
        ),
        "train_batch_size": (
            "Taille de lot",
            "Images par processus et micro-pas. auto : apprend ce qu'apprend 1 avec les mêmes "
            "gradient_accumulation_steps, mais prend à la fois autant d'images du pas qu'en contient la mémoire du "
            "GPU, ou memory_budget.",
        ),
        "gradient_accumulation_steps": (
            "Micro-pas par pas",
            "Micro-pas par pas de l'optimiseur. Un pas est un pas de l'optimiseur, ici et partout.",
        ),
        "gradient_checkpointing": (
            "Économie de mémoire",
            "Recalculer les activations au retour : un tiers de temps en plus pour bien moins de mémoire.",
        ),
        "gradient_checkpointing_blocks": (
            "Blocs économes",
            "Avec gradient_checkpointing : seulement ces blocs du UNet, par ex. down_blocks.1 up_blocks.1. Par défaut : tous.",
        ),
        "compile": (
            "Compiler",
            "Compiler les blocs répétés du UNet : une minute au début pour des pas plus rapides. Continue sans, où cela échoue.",
        ),
        "cuda_graphs": (
            "Graphes CUDA",
            "Enregistrer un micro-pas pour chaque taille d'images et le rejouer : des pas bien plus rapides là où un GPU attend son hôte, comme un H100 au lot 1. Pour un processus, sans train_text_encoder. Continue sans, où cela échoue.",
        ),
        "base_precision": (
            "Précision de la base",
            "Précision du UNet figé ; en int8, fp8 et nf4 les couches linéaires de ses transformers, sa plus grande part, sont tassées. Par défaut : mixed_precision.",
        ),
        "logging_steps": (
            "Rapporter tous les N pas",
            "Rapporter tous les N pas la perte moyenne de ces pas ; entre deux rapports un GPU n'attend jamais l'hôte.",
        ),
        "num_train_epochs": ("Époques", "Passages sur le jeu de données."),
        "max_train_steps": ("Pas", "Pas à entraîner ; l'emporte sur les époques."),
        "dry_run": (
            "À blanc",
            "Imprimer ce qui serait entraîné (images, pas, paramètres, mémoire, cache, avertissements) sans rien écrire.",
        ),
        "learning_rate": (
            "Taux d'apprentissage",
            "Taux d'apprentissage maximal. None si l'optimiseur en trouve un : adafactor avec relative_step=True.",
        ),
        "scale_lr": (
            "Adapter le taux",
            "Multiplier le taux d'apprentissage par la taille de lot, les micro-pas et les processus.",
        ),
        "lr_scheduler": ("Cours du taux", "Cours du taux d'apprentissage au fil des pas."),
        "lr_warmup_steps": (
            "Pas de montée",
            "Pas où le taux d'apprentissage monte depuis 0 (tous les cours sauf « constant »).",
        ),
        "lr_num_cycles": ("Cycles du cosinus", "Reprises de cosine_with_restarts."),
        "lr_power": ("Puissance du polynôme", "Exposant de polynomial."),
        "optimizer": (
            "Optimiseur",
            "adamw, adamw8bit, paged_adamw8bit, lion, lion8bit, prodigy, adafactor, schedule_free_adamw ; ou un "
            "module.Classe.",
        ),
        "use_8bit_adam": ("Adam en 8 bits", "La même chose que --optimizer adamw8bit."),
        "optimizer_args": (
            "Arguments de l'optimiseur",
            "Autres arguments de l'optimiseur, nom=valeur avec les valeurs de Python, par ex. d_coef=2.0 "
            "betas=(0.9,0.99).",
        ),
        "lora_plus_ratio": (
            "Rapport LoRA+",
            "LoRA+ : la seconde matrice de chaque LoRA apprend tant de fois plus vite ; 16 est usuel.",
        ),
        "adam_beta1": ("Adam : bêta 1", "Décroissance du premier moment de l'optimiseur."),
        "adam_beta2": ("Adam : bêta 2", "Décroissance du second moment de l'optimiseur."),
        "adam_weight_decay": ("Décroissance des poids", "Décroissance des poids, découplée."),
        "adam_epsilon": ("Adam : epsilon", "Terme qui garde finie la division d'Adam."),
        "ema_decay": (
            "Moyenne mobile",
            "Dessiner et publier une moyenne mobile des poids qui garde cette part à chaque pas, par ex. 0.999.",
        ),
        "prodigy_beta3": (
            "Prodigy : bêta 3",
            "Décroissance de l'estimation du taux par Prodigy. Par défaut : la racine carrée d'adam_beta2.",
        ),
        "prodigy_decouple": ("Prodigy : découplé", "Décroissance des poids comme dans AdamW."),
        "prodigy_use_bias_correction": (
            "Prodigy : correction",
            "La correction des premiers pas d'Adam, dans Prodigy.",
        ),
        "prodigy_safeguard_warmup": (
            "Prodigy : montée prudente",
            "Empêcher l'estimation de Prodigy de trop croître pendant la montée du taux.",
        ),
        "max_grad_norm": (
            "Norme du gradient",
            "Les gradients sont réduits à cette norme ; 0 pour ne pas les réduire.",
        ),
        "mixed_precision": (
            "Précision",
            "Précision de la base et du calcul ; les poids du LoRA sont en float32 dans chacune. auto : celle de l'entraînement qui reprend ; sinon bf16 si le GPU la calcule nativement, fp16 sur un autre GPU, no sur un processeur.",
        ),
        "allow_cpu": (
            "Sans GPU",
            "Entraîner sans GPU une base de taille normale, ce qui prend des minutes par pas.",
        ),
        "allow_tf32": (
            "TF32",
            "Laisser les GPU Ampere et plus récents arrondir à TF32 les produits de matrices en float32.",
        ),
        "seed": ("Graine", "Fixe les poids de départ, l'ordre, le bruit, les instants et les miroirs."),
        "process_timeout_seconds": (
            "Attente entre processus",
            "Avec plusieurs processus : combien de secondes l'un peut faire attendre les autres avant qu'ils finissent "
            "en le disant.",
        ),
        "deterministic": (
            "Déterministe",
            "Seulement des calculs déterministes : la même machine donne les mêmes poids au bit près, un peu moins "
            "vite.",
        ),
        "dataloader_num_workers": (
            "Processus de lecture",
            "Processus qui décodent les images pendant que les caches se remplissent.",
        ),
        "cache_part": (
            "Une part du cache",
            "Ne remplir que cette part du cache, p. ex. 3/16, et finir : pour autant de travaux à la fois qu'on veut, "
            "avant un entraînement qui y trouve tout.",
        ),
        "cache_dir": (
            "Dossier de cache",
            "Dossier des latents et des encodages de texte, commun aux entraînements. Par défaut : <output_dir>/cache.",
        ),
        "checkpointing_steps": ("Sauver tous les N pas", "Enregistrer une sauvegarde tous les N pas."),
        "checkpointing_epochs": ("Sauver toutes les N époques", "Enregistrer une sauvegarde toutes les N époques."),
        "checkpoints_total_limit": ("Sauvegardes gardées", "Garder les N dernières sauvegardes, deux au moins."),
        "resume_from_checkpoint": (
            "Reprendre depuis",
            "« latest » (repartir de zéro s'il n'y en a pas), un dossier checkpoint-<pas>, ou None pour refuser un "
            "output_dir déjà utilisé.",
        ),
        "output_name": (
            "Nom du fichier",
            "Nom du fichier LoRA pour ComfyUI, A1111 et Forge, sans .safetensors. Par défaut : le nom du dossier.",
        ),
        "save_precision": (
            "Précision des fichiers",
            "Précision des fichiers LoRA ; fp32 est pris là où des valeurs seraient perdues.",
        ),
        "loras_dir": (
            "Dossier des LoRA",
            "Dossier qui reçoit une copie de <output_name>.safetensors, par ex. models/loras de ComfyUI ; il doit "
            "exister.",
        ),
        "save_side_files": (
            "Fichiers d'accompagnement",
            "Écrire aussi <output_name>.json et .png, que A1111, Forge et InvokeAI montrent à côté d'un LoRA.",
        ),
        "validation_prompt": (
            "Textes d'échantillons",
            "Textes dessinés avec le LoRA pendant qu'il s'entraîne ; chacun peut porter derrière lui ses propres options, comme chez kohya, pour largeur, hauteur, graine, guidage, pas et négatif : « a cat --w 1024 --h 768 --d 42 --l 7.5 --s 30 --n blurry ».",
        ),
        "validation_prompts_file": (
            "Fichier de textes",
            "Fichier texte avec d'autres textes d'échantillons, un par ligne.",
        ),
        "validation_without_trigger": (
            "Aussi sans déclencheur",
            "Dessiner aussi sans le mot déclencheur chaque texte qui le contient, pour voir ce qui déborde.",
        ),
        "validation_steps": ("Dessiner tous les N pas", "Dessiner tous les N pas au lieu de toutes les N époques."),
        "validation_guidance_rescale": (
            "Guidage adouci",
            "À quel point le guidage est gardé de surexposer, de 0 à 1. Par défaut : 0.7 avec un SNR final nul, sinon 0.",
        ),
        "similarity_model": (
            "Modèle de ressemblance",
            "Rapporter combien ces images ressemblent aux images d'entraînement (cosinus d'encodages, 1 pour pareil), par tout modèle de vision de transformers : un dossier ou un nom du Hub, par ex. facebook/dinov2-base ou openai/clip-vit-large-patch14.",
        ),
        "early_stopping_patience": (
            "Patience",
            "Finir l'entraînement après tant de validations de suite qui n'ont pas baissé validation_loss.",
        ),
        "early_stopping_min_delta": ("Baisse minimale", "Elle n'a baissé que si c'est de plus que ceci."),
        "push_to_hub": (
            "Envoyer au Hub",
            "Envoyer au Hub, à la fin, les fichiers LoRA, la fiche du modèle et ses images.",
        ),
        "hub_model_id": (
            "Dépôt sur le Hub",
            "Dépôt où envoyer, utilisateur/nom. Par défaut : output_name, sous le compte connecté.",
        ),
        "hub_private": ("Dépôt privé", "Créer ce dépôt comme privé."),
        "num_validation_images": ("Images par texte", "Images dessinées pour chaque texte."),
        "validation_epochs": (
            "Dessiner toutes les N époques",
            "Dessiner avant le premier pas, toutes les N époques, et à la fin. Par défaut : au plus dix fois, et pas plus souvent qu'à chaque époque.",
        ),
        "validation_inference_steps": ("Pas de débruitage", "Pas de débruitage d'une telle image."),
        "validation_guidance_scale": ("Guidage", "Guidage sans classifieur d'une telle image."),
        "validation_split": (
            "Part de validation",
            "Tenir cette part des images hors de l'entraînement et rapporter leur perte, à instants et bruits fixes, comme validation_loss : aussi souvent que des échantillons sont dessinés. La sauvegarde où elle est la plus basse est gardée, son fichier LoRA aussi.",
        ),
        "loss_bins": (
            "Intervalles de perte",
            "Rapporter la perte aussi pour chacun de tant d'intervalles égaux d'instants ; 0 pour aucun.",
        ),
        "report_to": ("Suivi", "Où vont mesures et images, en plus de events.jsonl ; all est TensorBoard et W&B."),
        "logging_dir": ("Dossier du suivi", "Dossier des fichiers de TensorBoard, dans output_dir."),
        "tracker_project_name": ("Projet du suivi", "Projet dans l'outil de suivi."),
        "tracker_run_name": (
            "Nom dans le suivi",
            "Nom de l'entraînement dans l'outil de suivi. Par défaut : le nom d'output_dir.",
        ),
    },
}
