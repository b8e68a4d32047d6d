@rem The client on Windows: with the Python of the environment (or the installation) whose Scripts folder this is in.
@setlocal
@set "python=%~dp0python.exe"
@if not exist "%python%" set "python=%~dp0..\python.exe"
@"%python%" -I -m host_client %*
@exit /b %ERRORLEVEL%
