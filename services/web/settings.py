"""What an operator may turn, with the units in the names."""

from pathlib import Path
from typing import ClassVar

from libs.mesh.settings import ServiceSettings

HERE = Path(__file__).parent


class Settings(ServiceSettings):
    word: ClassVar[str] = "web"

    # What `python -m services.web.build` made; without it the server says how to make it.
    dist_folder: Path = HERE / "dist"
    # The REST interface, one document for each word and one for all.
    openapi_folder: Path = HERE.parents[1] / "gen" / "openapi"
