"""Models to the Hugging Face Hub."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from smec_core.checksums import SUMS, write_sums
from smec_core.data.hub import FORMS, hub_api, told
from smec_core.errors import InputError, one_line
from smec_core.model.card import HUB_HEAD, model_card
from smec_core.temporary import temporary_folder

CARD = "README.md"


def push_model(
    save: Callable[[Path], None],
    config: dict[str, Any],
    metrics: dict[str, Any],
    repo: str,
    private: bool,
    message: str,
    files: tuple[str, ...],
) -> str:
    """Uploads a model; see `Model.push_to_hub`.

    Args:
        save: writes the model folder.
        config: its config.json, for the card.
        metrics: its metrics.json.
        repo: "USER/NAME".
        private: whether a repository that is made is.
        message: of the commit.
        files: all that a model folder may hold.
    """
    uri = f"hf://{repo}"
    api, _ = hub_api(uri)
    form = FORMS["model"].partition("[")[0]
    if repo.count("/") != 1:
        raise InputError(f"{uri}: is not of the form {form} (a user or an organisation, and a name)")
    with temporary_folder() as folder:
        save(folder)
        (folder / CARD).write_text(HUB_HEAD + model_card(config, metrics, uri), encoding="utf-8")
        names = [name for name in files if (folder / name).exists()]
        write_sums(folder, names)
        with told(uri):
            try:
                api.create_repo(repo, private=private, exist_ok=True)
            except ValueError as error:
                raise InputError(f"{uri}: is not of the form {form} ({one_line(error)})") from error
            # in one commit: what an earlier model had and this one lacks goes
            done = api.upload_folder(
                repo_id=repo,
                folder_path=folder,
                commit_message=message,
                allow_patterns=[*names, SUMS],
                delete_patterns=[*files, SUMS],
            )
    return f"{uri}@{done.oid}"
