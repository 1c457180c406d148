import optuna

from pneumonia_hf.compat.optuna import storage_id


def test_a_trial_is_known_to_its_storage_by_this_number():
    storage = optuna.storages.InMemoryStorage()
    for name in ("first", "second"):  # numbers of a study begin at 0, those of a storage do not
        trial = optuna.create_study(storage=storage, study_name=name).ask()
    assert trial.number == 0
    assert storage.get_trial(storage_id(trial)).number == 0
    storage.set_trial_user_attr(storage_id(trial), "mark", 1)
    assert trial.study.trials[0].user_attrs == {"mark": 1}
