#!/bin/sh
# 安装一稿多发 @VERSION@：不联网，只用本目录里的文件。用法：sudo ./install.sh [目录]，默认 /opt/distributor。
# 可以再次运行：新环境装好、能运行之后才换下旧的。
set -eu

fail() { printf '安装没有进行：%s\n' "$1" >&2; exit 1; }

cd "$(dirname "$0")"
case ${1:-} in -*) fail "不认识的参数 $1。用法：./install.sh [目录]" ;; esac
target=${1:-/opt/distributor}
python=${PYTHON:-python@PYTHON@}

printf '核对文件……\n'
command -v sha256sum >/dev/null || fail '缺少 sha256sum，无法核对文件。请先安装 coreutils。'
sha256sum --check --quiet --strict SHA256SUMS >/dev/null 2>&1 ||
  fail '有文件缺失或与清单不符，可能在拷贝时损坏或被改动。请重新取得安装包，比对发布时公布的 SHA-256 后再解压。'

[ "$(uname -s)" = "@SYSTEM@" ] && [ "$(uname -m)" = "@MACHINE@" ] ||
  fail "这个安装包适用于 @SYSTEM@ @MACHINE@，本机是 $(uname -s) $(uname -m)。请换用本机平台的安装包。"
command -v "$python" >/dev/null ||
  fail "找不到 $python。请安装 Python @PYTHON@（Debian 12：apt-get install python3），或用 PYTHON=路径 指明。"
found=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
[ "$found" = "@PYTHON@" ] ||
  fail "这个安装包适用于 Python @PYTHON@，$python 是 $found。请用 PYTHON=路径 指明 Python @PYTHON@。"
"$python" -c 'import venv' 2>/dev/null || fail "$python 不完整，不能建立虚拟环境。请安装完整的 Python @PYTHON@。"
"$python" - @GLIBC@ <<'CHECK' ||
import platform, sys
name, version = platform.libc_ver()
number = lambda text: tuple(int(part) for part in text.split(".")[:2])
sys.exit(name != "glibc" or number(version) < number(sys.argv[1]))
CHECK
  fail "本机的 C 函数库太旧或不是 glibc：需要 glibc @GLIBC@ 或更新（Debian 12 即可）。请升级操作系统。"
mkdir -p "$target" 2>/dev/null && [ -w "$target" ] || fail "不能写入 $target。请用 sudo 运行，或换一个目录。"
target=$(cd "$target" && pwd)

# An environment can't be moved: its programs name their own place. So it is made under a name of its own, and a link
# leads to it; the link changes in one step.
fresh=$target/venv-@VERSION@-$$
trap 'rm -rf "$fresh"' EXIT
trap 'exit 1' HUP INT TERM
printf '建立虚拟环境……\n'
"$python" -m venv --without-pip "$fresh"
printf '安装程序和依赖（不联网）……\n'
set -- wheels/pip-*.whl
PIP_CONFIG_FILE=/dev/null "$fresh/bin/python" "$1/pip" --isolated --disable-pip-version-check install --quiet --no-index --find-links wheels \
  --only-binary :all: --require-hashes --requirement requirements.txt ||
  fail '有依赖没有装上（原因见上），原有的安装没有变动。请确认磁盘有 1 GB 空余，仍不行请把上面的输出交给维护人员。'
(cd / && "$fresh/bin/distributor" --version >/dev/null) || fail '装好的程序不能运行，原有的安装没有变动。请把上面的输出交给维护人员。'

before=$(readlink "$target/venv" || true)
[ ! -e "$target/venv" ] || [ -n "$before" ] || fail "$target/venv 不是本程序建立的链接。请先把它移开。"
ln -sfn "$(basename "$fresh")" "$target/.venv-next"
mv -T "$target/.venv-next" "$target/venv"
trap - EXIT
# What runs now goes on in its own environment until it is started again; those before it can go.
for old in "$target"/venv-*; do
  [ "$old" = "$fresh" ] || [ "$old" = "$target/$before" ] || rm -rf "$old"
done
rm -rf "$target/deploy"
cp -R deploy "$target/deploy"

cat <<DONE
已安装：$("$target/venv/bin/distributor" --version)，位于 $target

下一步
  1. 看一遍演示：       $target/venv/bin/distributor demo
  2. 建用户和目录、装服务、配 nginx：按 $target/deploy/README.zh-CN.md 逐步做
  3. 写好设置和区县文件后检查：
     $target/venv/bin/distributor --config /etc/distributor/distributor.toml check --probe
DONE
case $("$python" -c 'import sys; print(sys.base_prefix)')/ in
  /root/* | /home/*)
    printf '提醒：%s 在个人目录里，systemd 单元不许服务读个人目录，服务会起不来。请改用系统的 Python（PYTHON=/usr/bin/python@PYTHON@）。\n' "$python" ;;
esac
[ -z "$before" ] || printf '这是升级：请重启服务（systemctl restart distributor.service）。\n'
