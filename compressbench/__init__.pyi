from compressbench.api.compress import Result as Result
from compressbench.api.compress import compress as compress
from compressbench.api.front import FrontPicture as FrontPicture
from compressbench.api.front import front as front
from compressbench.api.front import front_picture as front_picture
from compressbench.api.load import Run as Run
from compressbench.api.load import load as load
from compressbench.core.errors import CheckFailedError as CheckFailedError
from compressbench.core.errors import UserError as UserError

__version__: str
