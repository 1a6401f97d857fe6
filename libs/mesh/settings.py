"""What an operator may turn in every service, with the units in the names."""

from enum import Enum
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field, PositiveFloat, PositiveInt, SecretStr
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from libs.development import is_development_secret


class Environment(Enum):
    DEVELOPMENT = "development"
    PRODUCTION = "production"


class LogFormat(Enum):
    CONSOLE = "console"
    JSON = "json"


class ServiceSettings(BaseSettings):
    """Read once at the start: each value as `<WORD>_<NAME>` first, then as `<NAME>`."""

    # An error names the setting and never shows its value, which may be a secret.
    model_config = SettingsConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)
    word: ClassVar[str]

    environment: Environment = Environment.DEVELOPMENT
    listen_host: str = "127.0.0.1"
    mesh_port: int
    probe_port: int
    tls_folder: Path
    database_url: SecretStr = SecretStr("")
    worker_database_url: SecretStr = SecretStr("")
    redis_url: SecretStr = SecretStr("")
    auth_service_url: str = "127.0.0.1:18011"
    log_format: LogFormat = LogFormat.CONSOLE
    # Of a collector, without the path that spans are sent to; empty: nobody collects traces.
    otlp_endpoint: str = ""
    trace_sample_ratio: float = 0.01
    # Between the last "not serving" and the first refused call, so that balancers can look away.
    drain_notice_seconds: float = 0.0
    drain_seconds: float = 10.0
    # The contract promises one within ten seconds.
    stream_heartbeat_seconds: Annotated[float, Field(gt=0, le=10)] = 5.0
    streams_max: PositiveInt = 2_000
    # Of one user; where nobody knows the user, of one service or else of one address.
    streams_per_caller_max: PositiveInt = 100
    database_connections_max: PositiveInt = 10
    sign_in_per_second: PositiveFloat = 20.0
    writes_per_second: PositiveFloat = 2_000.0
    reads_per_second: PositiveFloat = 2_000.0
    streams_per_second: PositiveFloat = 100.0
    payments_per_second: PositiveFloat = 1.0

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        own = EnvSettingsSource(settings_cls, env_prefix=f"{cls.word.upper()}_")
        shared = EnvSettingsSource(settings_cls, env_prefix="")
        return init_settings, own, shared

    def model_post_init(self, context: Any, /) -> None:
        if self.environment is not Environment.PRODUCTION:
            return
        secrets = [(name, value) for name, value in self if isinstance(value, SecretStr)]
        if names := [name for name, value in secrets if is_development_secret(value.get_secret_value())]:
            raise ValueError(
                "ENVIRONMENT=production refuses what was made for development or is known to everybody: "
                + ", ".join(names)
            )
