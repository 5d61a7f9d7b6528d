#!/bin/sh
# Install the Debian packages that Qt and OpenGL need, where they are missing and we may.
# Elsewhere (macOS, other distributions) this does nothing.
set -eu
command -v dpkg-query >/dev/null 2>&1 || exit 0
wanted="python3-venv xauth xvfb libegl1 libgl1 libglx-mesa0 libgl1-mesa-dri libxkbcommon-x11-0
libdbus-1-3 libxcb-icccm4 libxcb-image0 libxcb-keysyms1 libxcb-randr0 libxcb-render-util0
libxcb-xinerama0 libxcb-cursor0 libxcb-shape0"
missing=""
for package in $wanted; do
    state=$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null || true)
    [ "$state" = "install ok installed" ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" -ne 0 ]; then
    echo "Qt and OpenGL need packages that are missing. Install them with: sudo apt-get update && sudo apt-get install -y$missing" >&2
    exit 0
fi
echo "Installing Debian packages:$missing"
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
