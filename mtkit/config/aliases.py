"""What other toolkits call the settings: names of fairseq, OpenNMT, Marian, Sockeye, JoeyNMT and Hugging Face.

Messages about unknown keys look names up here; no alias is ever accepted as a setting.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Alias:
    """Names of one thing elsewhere, the settings here that do it, and what to know where they are not the same."""

    names: str  # separated by spaces, as they are without leading dashes, with _ for -
    settings: tuple[str, ...] = ()  # full names; none where no setting does it
    advice: str = ""

    @property
    def told(self) -> str:
        """What a message says after the name of the unknown key."""
        quoted = [f"'{name}'" for name in self.settings]
        if not self.advice:
            return f"did you mean {' or '.join(quoted)}?"
        return f"see {' and '.join(quoted)}: {self.advice}" if quoted else self.advice


def alias_of(key: str) -> Alias | None:
    """What is known of a key of another toolkit."""
    return _BY_NAME.get(key.lower().lstrip("-").replace("-", "_"))


_CASE = "the case of the text is kept; mtkit evaluate --lowercase scores without case"
_FILES = "a corpus is {source: FILE, target: FILE}, or {tsv: FILE} with both in columns"
_EPOCHS = (
    "training is measured in updates, not epochs; one epoch is about tokens of the longer side / training.batch_tokens "
    "updates"
)
_SENTENCES = "batches are measured in padded tokens, not sentences; multiply by the mean length of a sentence"
_ACCUMULATE = "the number of batches whose gradients make one update"
_WARMUP_SHARE = "a number of updates, not a share of max_steps"
_UPDATES = "in updates, not epochs"
_VOCABULARY = (
    "the vocabulary is made from the training text, so dictionaries are not read; tokenizer.model takes a "
    "SentencePiece model"
)
_PLAIN = "corpora are plain text, and mtkit trains a tokenizer on it; tokenizer.model takes a SentencePiece model"
_THREADS = "the environment sets the number of threads: OMP_NUM_THREADS=4 mtkit train …; the default is one per core"
_ONE_DEVICE = "mtkit trains on one device; choose a GPU by CUDA_VISIBLE_DEVICES=1 mtkit train …"
_NO_WORKERS = "batches are prepared in the background anyway; OMP_NUM_THREADS sets how many cores compute"
_RESUMES = "mtkit train always resumes where the run stopped; mtkit train --fresh starts anew"
_PROGRESS = "figures are logged every training.log_every updates, and kept in the log of the run directory"
_GNMT = "for the form ((5 + length) / 6)^p also set decoding.length_penalty_form: gnmt"
_N_BEST = "it is an option of the command: mtkit translate --n-best 5"
_STEPS_PER_CHECK = "in updates"

ALIASES: tuple[Alias, ...] = (
    # How long, how fast
    Alias("lr learn_rate learnrate initial_learning_rate base_lr max_lr peak_lr", ("training.learning_rate",)),
    Alias(
        "lr_scheduler lr_scheduler_type lr_schedule decay_method learning_rate_scheduler_type scheduling scheduler "
        "learning_rate_schedule lr_decay_inv_sqrt",
        ("training.schedule",),
    ),
    Alias(
        "min_lr stop_min_lr learning_rate_min end_learning_rate lr_min",
        ("training.final_learning_rate",),
        "the rate at which linear, cosine and plateau stop falling",
    ),
    Alias(
        "lr_shrink decrease_factor learning_rate_decay learning_rate_reduce_factor lr_decay",
        ("training.plateau_factor",),
        "for schedule plateau",
    ),
    Alias(
        "lr_patience learning_rate_reduce_num_not_improved",
        ("training.plateau_patience",),
        "for schedule plateau",
    ),
    Alias(
        "warmup warmup_updates lr_warmup learning_rate_warmup num_warmup_steps n_warmup_steps",
        ("training.warmup_steps",),
    ),
    Alias("warmup_ratio warmup_fraction", ("training.warmup_steps",), _WARMUP_SHARE),
    Alias("warmup_init_lr lr_warmup_start_rate warmup_start_lr", (), "warm-up always begins at 0"),
    Alias(
        "learning_rate_factor",
        ("training.learning_rate",),
        "the peak of the schedule; null with noam is the paper's factor of 1",
    ),
    Alias(
        "max_update max_updates train_steps max_train_steps total_num_update total_num_updates after_batches "
        "num_train_steps total_steps num_steps",
        ("training.max_steps",),
    ),
    Alias(
        "epochs epoch max_epoch max_epochs num_epochs num_train_epochs after_epochs max_num_epochs n_epochs after",
        ("training.max_steps",),
        _EPOCHS,
    ),
    Alias("stop_time_hours max_hours time_limit", ("training.max_minutes",), "in minutes"),
    Alias("max_seconds max_time", ("training.max_minutes",), "in minutes"),
    Alias(
        "min_updates min_epochs min_num_epochs", ("training.patience",), "there is no minimum; null never stops early"
    ),
    Alias(
        "early_stopping early_stopping_patience max_num_checkpoint_not_improved",
        ("training.patience",),
        "validations in a row without a better one after which training ends",
    ),
    # Batches
    Alias(
        "max_tokens batch_size_tokens tokens_per_batch max_tokens_per_batch",
        ("training.batch_tokens",),
        "padding counts, as in fairseq: sentences x longest side",
    ),
    Alias(
        "mini_batch_words batch_words",
        ("training.batch_tokens",),
        "counts padded tokens of the longer side, so it is larger than the words of the target",
    ),
    Alias(
        "batch_size max_sentences mini_batch per_device_train_batch_size train_batch_size",
        ("training.batch_tokens",),
        _SENTENCES,
    ),
    Alias("batch_type", ("training.batch_tokens",), "batches are always measured in padded tokens"),
    Alias(
        "mini_batch_fit workspace maxi_batch maxi_batch_sort bucket_size pool_factor",
        ("training.batch_tokens",),
        "pairs of similar length always share batches; more tokens need more memory",
    ),
    Alias(
        "update_freq accum_count gradient_accumulation_steps optimizer_delay update_interval batch_multiplier "
        "accumulate_grad_batches grad_accum gradient_accumulation accumulation_steps",
        ("training.accumulate",),
        _ACCUMULATE,
    ),
    Alias(
        "valid_batch_size eval_batch_size valid_mini_batch per_device_eval_batch_size max_tokens_valid "
        "batch_size_valid",
        ("decoding.batch_tokens",),
    ),
    Alias("normalization", (), "the loss is a mean over the target tokens of the whole update, always"),
    Alias("shuffle no_shuffle sort_by_length", (), "every epoch is shuffled anyway; training.seed decides the order"),
    # Optimizer
    Alias("optim optimiser", ("training.optimizer",)),
    Alias("adam_beta1 adam_beta2 betas optimizer_betas optimizer_params", ("training.adam_betas",), "a list of both"),
    Alias("adam_epsilon eps optimizer_epsilon optimizer_eps", ("training.adam_eps",)),
    Alias(
        "max_grad_norm clip_grad_norm gradient_clipping_threshold gradient_clip_val grad_clip clip_gradient",
        ("training.clip_norm",),
        "null: no clipping, which fairseq writes as 0",
    ),
    Alias("clip_grad_val", ("training.clip_norm",), "the norm of the whole gradient, not single values"),
    Alias("label_smoothing_factor smoothing", ("training.label_smoothing",)),
    Alias(
        "criterion loss cost_type",
        ("training.label_smoothing", "training.consistency"),
        "the loss is cross-entropy, with label smoothing and on demand R-Drop or SimCut",
    ),
    Alias(
        "fp16 amp half use_fp16 memory_efficient_fp16 mixed_precision apex_opt_level model_dtype dtype bf16 use_amp",
        ("training.precision",),
        "auto, fp32, bf16 or fp16, such as training.precision: fp16",
    ),
    Alias(
        "exponential_smoothing average_decay ema ema_beta",
        ("training.ema_decay",),
        "the decay of the average, near 1, such as 0.9999; Marian's and OpenNMT's figure is 1 minus that",
    ),
    Alias("random_seed", ("training.seed",)),
    Alias(
        "param_init param_init_glorot initializer init embed_initializer init_gain weight_init",
        (),
        "how weights are initialised cannot be set; training.seed draws other ones",
    ),
    # Validation and checkpoints
    Alias(
        "valid_freq validation_freq valid_steps eval_steps validate_interval_updates eval_every valid_interval "
        "checkpoint_interval",
        ("training.validate_every",),
        _STEPS_PER_CHECK,
    ),
    Alias(
        "validate_interval evaluation_strategy eval_strategy",
        ("training.validate_every",),
        _UPDATES,
    ),
    Alias(
        "save_freq save_steps save_checkpoint_steps save_interval_updates checkpoint_every",
        ("training.save_every",),
        _STEPS_PER_CHECK,
    ),
    Alias("save_interval save_strategy no_epoch_checkpoints", ("training.save_every",), _UPDATES),
    Alias(
        "keep_checkpoint keep_last_params save_total_limit keep_interval_updates keep_last_epochs keep_best_ckpts "
        "keep_best_checkpoints cache_last_best_params keep_last_ckpts keep_last",
        ("training.keep_checkpoints",),
        "the newest ones that training can resume from; those needed for averaging are kept anyway",
    ),
    Alias(
        "best_checkpoint_metric metric_for_best_model early_stopping_metric optimized_metric eval_metric "
        "early_stopping_criteria valid_metrics valid_metric keep_best eval_metrics metric",
        ("training.select_by",),
        "bleu, chrf or loss",
    ),
    Alias(
        "maximize_best_checkpoint_metric greater_is_better load_best_model_at_end",
        ("training.select_by",),
        "the best checkpoint is always kept",
    ),
    Alias(
        "eval_bleu predict_with_generate decode_and_evaluate eval_bleu_args eval_bleu_print_samples print_valid_sents",
        ("training.validation_sentences",),
        "each validation translates so many sentences and scores them",
    ),
    Alias(
        "eval_bleu_detok eval_bleu_remove_bpe remove_bpe post_process sacrebleu_cfg sacrebleu detok",
        (),
        "translations are plain text, and scores are sacreBLEU's with its own tokenizer (mtkit evaluate --tokenize)",
    ),
    Alias(
        "average avg_checkpoint num_average average_checkpoint avg_ckpts num_epoch_checkpoints num_update_checkpoints",
        ("training.average_checkpoints",),
        "that many checkpoints, up to the best one, are averaged if that scores better",
    ),
    Alias(
        "log_interval report_every disp_freq logging_freq logging_steps log_steps print_every log_freq",
        ("training.log_every",),
        _STEPS_PER_CHECK,
    ),
    Alias(
        "tensorboard_logdir tensorboard_log_dir report_to tensorboard_dir",
        ("training.tensorboard",),
        "true draws into tensorboard of the run directory",
    ),
    Alias(
        "quiet no_progress_bar log_format verbose log_level log_file valid_log log", ("training.log_every",), _PROGRESS
    ),
    Alias(
        "train_from finetune_from_model load_model model_name_or_path pretrained_model init_from params pretrained",
        ("training.start_from",),
        "a run directory, checkpoint or model bundle of mtkit",
    ),
    Alias(
        "restore_file resume_from_checkpoint resume reset_optimizer reset_dataloader reset_lr_scheduler reset_meters "
        "overwrite overwrite_output_dir overwrite_output no_reload reset_best_ckpt reset_scheduler",
        (),
        _RESUMES,
    ),
    # Where
    Alias("save_dir save_model model_dir output_dir out_dir destdir output_path logdir exp_dir", ("run_dir",)),
    Alias(
        "threads num_threads cpu_threads n_threads nthreads omp_num_threads intra_op_parallelism_threads", (), _THREADS
    ),
    Alias("num_workers workers dataloader_num_workers num_proc preprocessing_num_workers", (), _NO_WORKERS),
    Alias("use_cuda use_gpu gpu cuda no_cuda use_cpu cpu accelerator", ("device",), "auto, cpu, cuda or mps"),
    Alias(
        "gpu_ranks world_size distributed_world_size ddp_backend devices device_id device_ids gpus num_gpus n_gpu "
        "nprocs_per_node local_rank num_devices",
        ("device",),
        _ONE_DEVICE,
    ),
    # Text
    Alias("source_lang src_lang source_language src_language", ("languages.source",)),
    Alias("target_lang tgt_lang trg_lang target_language tgt_language", ("languages.target",)),
    Alias(
        "trainpref train_file train_sets train_src train_tgt train_data path_src path_tgt path_src_tgt src_path "
        "tgt_path corpus_1 prepared_data training_source training_target",
        ("data.train",),
        _FILES,
    ),
    Alias(
        "validpref dev validation valid_sets valid_src valid_tgt validation_file dev_data validation_source "
        "validation_target dev_src dev_tgt validation_data",
        ("data.valid",),
        _FILES,
    ),
    Alias(
        "testpref test_file test_sets test_src test_tgt test_data",
        ("data.test",),
        "each test set has a name: {NAME: {source: FILE, target: FILE}}",
    ),
    Alias("data_dir datapath data_path dataset_dir", ("data.root",)),
    Alias(
        "upsample_primary sampling_weights data_weighting temperature_sampling",
        ("data.temperature",),
        "or give each corpus of data.train a weight",
    ),
    Alias(
        "source_prefix src_prefix prefix prefix_size target_token",
        ("data.train",),
        "a corpus has a tag, a word put before each source line, such as {source: FILE, target: FILE, tag: <2de>}",
    ),
    Alias(
        "max_sent_length max_seq_len max_seq_length max_source_positions max_target_positions max_source_length "
        "max_target_length src_seq_length tgt_seq_length max_len max_seq max_position_embeddings",
        ("data.max_length",),
        "in tokens, for both sides of a training pair",
    ),
    Alias(
        "max_length_crop skip_invalid_size_inputs_valid_test src_seq_length_trunc tgt_seq_length_trunc",
        ("data.max_length",),
        "longer training pairs are left out and counted, none are cut",
    ),
    Alias("lowercase lower lower_case do_lower_case", (), _CASE),
    # Vocabulary
    Alias(
        "num_words src_vocab_size tgt_vocab_size trg_vocab_size nwordssrc nwordstgt vocab_limit voc_limit dim_vocabs "
        "bpe_operations num_merges merges num_operations bpe_size vocabulary_size num_symbols size",
        ("tokenizer.vocab_size",),
        "all pieces together, not merges; with tokenizer.shared false also {source: 8000, target: 4000}",
    ),
    Alias(
        "word_min_count voc_min_freq thresholdsrc thresholdtgt src_voc_min_freq min_freq "
        "src_words_min_frequency tgt_words_min_frequency",
        ("tokenizer.vocab_size",),
        "the size bounds the vocabulary; there is no least frequency",
    ),
    Alias(
        "src_vocab tgt_vocab trg_vocab vocab_file srcdict tgtdict vocabs vocab dict src_dict tgt_dict vocabulary "
        "source_vocab target_vocab vocab_path",
        ("tokenizer.model",),
        _VOCABULARY,
    ),
    Alias(
        "bpe bpe_codes codes src_subword_model tgt_subword_model sentencepiece_model bpe_model transforms "
        "subword_model subword src_subword_type tgt_subword_type tokenizer_name tokenizer_file spm_model",
        ("tokenizer.type", "tokenizer.model"),
        _PLAIN,
    ),
    Alias("level tokenizer_type model_type subword_type", ("tokenizer.type",), "bpe, unigram, char or word"),
    Alias(
        "joined_dictionary share_vocab shared_vocab joint_vocab shared_vocabulary shared_dictionary",
        ("tokenizer.shared",),
    ),
    Alias(
        "sentencepiece_alphas src_subword_alpha tgt_subword_alpha spm_alpha",
        ("training.unigram_alpha", "training.bpe_dropout"),
        "sampling of a unigram model, and of byte pairs",
    ),
    Alias("sentencepiece_max_lines input_sentence_size", ("tokenizer.sample_lines",)),
    Alias("user_defined_symbols special_symbols control_symbols special_tokens", ("tokenizer.symbols",)),
    Alias(
        "normalization_rule_name",
        ("tokenizer.source_normalization", "tokenizer.target_normalization"),
        "one for each side",
    ),
    # Model
    Alias(
        "arch model_arch encoder_type decoder_type model_name",
        ("model.architecture",),
        "transformer, rnn or mixed; sizes are settings of their own",
    ),
    Alias(
        "hidden_size rnn_size embedding_dim embed_dim word_vec_size dim_emb dim_rnn dim_model model_dim emb_size "
        "encoder_embed_dim decoder_embed_dim transformer_model_size src_word_vec_size tgt_word_vec_size num_embed "
        "d_embed embedding_size rnn_num_hidden hidden_dim dim",
        ("model.d_model",),
        "one width for embeddings and layers of both sides",
    ),
    Alias(
        "layers num_layers n_layers num_hidden_layers",
        ("model.encoder_layers", "model.decoder_layers"),
        "one for each side",
    ),
    Alias("enc_layers enc_depth encoder_depth num_encoder_layers", ("model.encoder_layers",)),
    Alias("dec_layers dec_depth decoder_depth num_decoder_layers", ("model.decoder_layers",)),
    Alias(
        "heads n_heads nhead attention_heads transformer_heads encoder_attention_heads transformer_attention_heads "
        "num_attention_heads nheads",
        ("model.num_heads",),
    ),
    Alias("decoder_attention_heads decoder_heads", ("model.decoder_num_heads",)),
    Alias(
        "transformer_ff ff_size ffn_dim transformer_dim_ffn dim_feedforward encoder_ffn_embed_dim encoder_ffn_dim "
        "transformer_feed_forward_num_hidden intermediate_size ff_dim d_inner ffn_size filter_size",
        ("model.d_ff",),
    ),
    Alias("decoder_ffn_embed_dim decoder_ffn_dim", ("model.decoder_d_ff",)),
    Alias(
        "transformer_dropout transformer_dropout_prepost residual_dropout hidden_dropout embed_dropout "
        "hidden_dropout_prob",
        ("model.dropout",),
        "of embeddings and of each sublayer's output",
    ),
    Alias("transformer_dropout_attention attn_dropout attention_probs_dropout_prob", ("model.attention_dropout",)),
    Alias("relu_dropout transformer_dropout_ffn transformer_dropout_act ffn_dropout", ("model.activation_dropout",)),
    Alias("encoder_layerdrop decoder_layerdrop layerdrop layer_drop", ("model.layer_dropout",), "of both sides"),
    Alias(
        "share_all_embeddings tied_embeddings tied_softmax share_decoder_input_output_embed tied_embeddings_all "
        "tied_embeddings_src share_embeddings share_decoder_embeddings weight_tying weight_tying_type "
        "tie_word_embeddings share_input_output_embed tie_weights",
        ("model.tie_embeddings",),
        "all, decoder (target and output) or none",
    ),
    Alias("no_scale_embedding scale_embedding embed_scale", ("model.scale_embeddings",)),
    Alias("layernorm_embedding normalize_embedding", ("model.embedding_norm",)),
    Alias(
        "encoder_normalize_before decoder_normalize_before normalize_before layer_norm transformer_preprocess "
        "transformer_postprocess pre_norm norm_first layer_norm_position",
        ("model.norm_placement",),
        "pre or post",
    ),
    Alias(
        "activation_fn activation_function pos_ffn_activation_fn transformer_ffn_activation hidden_act act",
        ("model.activation",),
    ),
    Alias(
        "position_encoding encoder_learned_pos decoder_learned_pos positional_encoding position_embeddings "
        "transformer_positional_embedding_type max_relative_positions pos_embedding transformer_train_positions "
        "no_token_positional_embeddings",
        ("model.positions",),
        "sinusoidal, learned, rotary or none",
    ),
    Alias("rnn_type enc_cell dec_cell rnn_cell_type cell_type", ("model.cell",), "for model.architecture: rnn"),
    Alias("input_feed", ("model.input_feeding",), "for model.architecture: rnn"),
    Alias("global_attention attention_type rnn_attention_type", ("model.attention",), "for model.architecture: rnn"),
    # Decoding
    Alias("beam num_beams beam_width beamsize generation_num_beams", ("decoding.beam_size",)),
    Alias("lenpen len_pen normalize length_normalization", ("decoding.length_penalty",)),
    Alias("alpha length_penalty_alpha beam_alpha len_penalty", ("decoding.length_penalty",), _GNMT),
    Alias("nbest n_best nbest_size num_return_sequences", (), _N_BEST),
    Alias("max_len_a", ("decoding.max_length_ratio",)),
    Alias("max_len_b", ("decoding.max_length_extra",)),
    Alias(
        "max_output_length max_new_tokens generation_max_length max_decoding_length max_length_factor "
        "max_output_length_num_stds max_generation_length",
        ("decoding.max_length_ratio", "decoding.max_length_extra"),
        "most target tokens are max_length_ratio x source tokens + max_length_extra",
    ),
    Alias("min_len min_output_length min_decoding_length min_new_tokens", ("decoding.min_length",)),
    Alias("no_repeat_ngram_size block_ngram_repeat ngram_blocking", ("decoding.no_repeat_ngram",)),
    Alias("sampling do_sample output_sampling", ("decoding.method",), "method: sample"),
    Alias("sampling_topk random_sampling_topk topk", ("decoding.top_k",)),
    Alias("sampling_topp random_sampling_topp topp", ("decoding.top_p",)),
    Alias("sampling_temperature random_sampling_temp softmax_temperature", ("decoding.temperature",)),
    Alias("diverse_beam_groups num_beam_groups", ("decoding.diversity_groups",)),
    Alias("diverse_beam_strength diversity_penalty", ("decoding.diversity_strength",)),
    Alias("beam_search_stop", ("decoding.stopping",)),
    Alias("replace_unk allow_unk generate_unk unkpen unk_penalty", ("decoding.unknown",), "keep, ban or copy"),
    Alias("kind", ("model.architecture", "tokenizer.type")),
    Alias(
        "jsonl json parquet", ("data.train",), "{tsv: FILE} takes columns with tabs between; convert the file to that"
    ),
    Alias("src tgt train_source train_target", ("data.train",), _FILES),
    Alias("valid_source valid_target dev_source dev_target", ("data.valid",), _FILES),
    Alias("test_source test_target", ("data.test",), "names, each with {source: FILE, target: FILE}"),
    Alias("testing generate generation inference translate beam_search", ("decoding",)),
    Alias("word_penalty guided_alignment alignment_type phrase_table", (), "mtkit has nothing like it"),
    Alias(
        "task user_dir criterion_name push_to_hub do_train do_eval do_predict",
        (),
        "no setting; mtkit train trains, mtkit evaluate scores",
    ),
)

_BY_NAME = {name: alias for alias in ALIASES for name in alias.names.split()}
