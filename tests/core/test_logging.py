import logging
import re
import sys

import pytest

from helios.core import logging as logs
from helios.core.log_handlers import attach


@pytest.fixture(autouse=True)
def _closed():
    yield
    logs.close_loggers()


def _handlers():
    return logging.getLogger("helios").handlers


def test_info_goes_to_the_file(tmp_path):
    with logs.open_loggers("a", log_path=tmp_path) as loggers:
        logs.get_root_logger().info("hello")
    assert "hello" in loggers.log_file.read_text()


def test_a_line_has_the_time_and_the_level(tmp_path):
    with logs.open_loggers("a", log_path=tmp_path) as loggers:
        loggers.logger.info("hello %d", 3)
    line = r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}\] \[INFO\] hello 3\n"
    assert re.fullmatch(line, loggers.log_file.read_text())


def test_a_warning_goes_to_stderr_and_to_the_file(tmp_path, capsys):
    with logs.open_loggers("a", log_path=tmp_path) as loggers:
        loggers.logger.warning("careful")
    assert capsys.readouterr().err.count("careful") == 1
    assert loggers.log_file.read_text().count("careful") == 1


def test_info_does_not_go_to_stderr(tmp_path, capsys):
    with logs.open_loggers("a", log_path=tmp_path) as loggers:
        loggers.logger.info("hello")
    assert capsys.readouterr().err == ""


def test_warnings_go_to_stderr_without_a_file(capsys):
    with logs.open_loggers("a"):
        logs.get_root_logger().warning("careful")
    assert "[WARNING] careful" in capsys.readouterr().err


def test_warnings_go_to_the_stderr_of_the_moment(capsys, monkeypatch):
    with logs.open_loggers("a"):
        monkeypatch.setattr(sys, "stderr", sys.stdout)
        logs.get_root_logger().warning("careful")
    assert "careful" in capsys.readouterr().out


def test_an_exception_is_logged_with_its_traceback(tmp_path):
    with logs.open_loggers("a", log_path=tmp_path) as loggers:
        try:
            raise KeyError("lost")
        except KeyError:
            loggers.logger.exception("it broke")
    text = loggers.log_file.read_text()
    assert "Traceback" in text
    assert "KeyError: 'lost'" in text


def test_lines_are_not_doubled_by_the_root_logger(tmp_path, capsys):
    extra = logging.StreamHandler(sys.stderr)
    logging.getLogger().addHandler(extra)
    try:
        with logs.open_loggers("a"):
            logs.get_root_logger().warning("careful")
    finally:
        logging.getLogger().removeHandler(extra)
    assert capsys.readouterr().err.count("careful") == 1


def test_three_runs_in_one_process_do_not_double_lines(tmp_path, capsys):
    for number in range(3):
        with logs.open_loggers("a", log_path=tmp_path) as loggers:
            loggers.logger.error("error of run %d", number)
        assert loggers.log_file.read_text().count("\n") == 1
    assert capsys.readouterr().err.count("error of run 2") == 1


def test_close_removes_the_handlers(tmp_path):
    before = list(_handlers())
    logs.open_loggers("a", log_path=tmp_path).close()
    assert _handlers() == before


def test_close_again_does_nothing(tmp_path):
    loggers = logs.open_loggers("a", log_path=tmp_path, run_path=tmp_path)
    loggers.close()
    loggers.close()


def test_closing_an_old_run_leaves_the_new_one_open(tmp_path):
    old = logs.open_loggers("a", log_path=tmp_path)
    new = logs.open_loggers("a", log_path=tmp_path)
    old.close()
    new.logger.info("still here")
    new.close()
    assert "still here" in new.log_file.read_text()


def test_a_crashed_run_leaves_no_handlers_to_the_next(tmp_path):
    crashed = logs.open_loggers("crashed", log_path=tmp_path)
    with logs.open_loggers("next", log_path=tmp_path) as loggers:
        loggers.logger.info("hello")
    assert crashed.log_file.read_text() == ""
    assert _handlers() == []


def test_handlers_without_a_run_are_removed_by_the_next(tmp_path):
    attach(tmp_path / "left.log", rank=0)
    with logs.open_loggers("next", log_path=tmp_path) as loggers:
        loggers.logger.info("hello")
    assert (tmp_path / "left.log").read_text() == ""


def test_handlers_of_the_user_stay(tmp_path):
    own = logging.NullHandler()
    logging.getLogger("helios").addHandler(own)
    try:
        logs.open_loggers("a", log_path=tmp_path).close()
        assert _handlers() == [own]
    finally:
        logging.getLogger("helios").removeHandler(own)


def test_a_run_that_cannot_open_its_file_leaves_no_handlers(tmp_path):
    (tmp_path / "a.log").mkdir()
    with pytest.raises(OSError, match=r"a\.log"):
        logs.open_loggers("a", log_path=tmp_path, resume={"log_file": "a.log"})
    assert _handlers() == []


def test_level_and_propagation_are_put_back(tmp_path):
    logger = logging.getLogger("helios")
    before = logger.level, logger.propagate
    logs.open_loggers("a").close()
    assert (logger.level, logger.propagate) == before


def test_no_file_is_written_without_a_log_path(tmp_path):
    with logs.open_loggers("a", run_path=tmp_path):
        logs.get_root_logger().info("hello")
    assert list(tmp_path.rglob("*.log")) == []


def test_there_is_no_logger_to_write_info_to_without_a_file():
    with logs.open_loggers("a") as loggers:
        assert loggers.logger is None
        assert loggers.log_file is None


def test_folders_are_created(tmp_path):
    with logs.open_loggers("a", tmp_path / "x" / "logs", tmp_path / "y" / "runs") as loggers:
        assert loggers.log_file.parent == tmp_path / "x" / "logs"
        assert loggers.run_dir.parent == tmp_path / "y" / "runs"
        assert loggers.run_dir.is_dir()


def test_the_file_and_the_folder_have_one_name(tmp_path):
    with logs.open_loggers("a", tmp_path, tmp_path) as loggers:
        assert loggers.log_file.stem == loggers.run_dir.name
        assert loggers.run_dir.name.startswith("a_")


def test_the_names_are_plain_strings_without_folders(tmp_path):
    with logs.open_loggers("a", tmp_path, tmp_path) as loggers:
        assert loggers.names == {
            "log_file": loggers.log_file.name,
            "run_dir": loggers.run_dir.name,
        }
        assert all(type(name) is str for name in loggers.names.values())


def test_a_resumed_run_goes_on_in_its_file(tmp_path):
    with logs.open_loggers("a", log_path=tmp_path) as first:
        first.logger.info("one")
    with logs.open_loggers("b", log_path=tmp_path, resume=first.names) as second:
        second.logger.info("two")
    assert second.log_file == first.log_file
    assert [line[-3:] for line in first.log_file.read_text().splitlines()] == ["one", "two"]


def test_a_resumed_run_goes_on_in_its_tensorboard_folder(tmp_path):
    with logs.open_loggers("a", run_path=tmp_path) as first:
        pass
    with logs.open_loggers("a", run_path=tmp_path, resume=first.names) as second:
        assert second.run_dir == first.run_dir


def test_a_run_whose_folders_were_moved_goes_on_there(tmp_path):
    with logs.open_loggers("a", log_path=tmp_path / "x") as first:
        first.logger.info("one")
    (tmp_path / "x").rename(tmp_path / "y")
    with logs.open_loggers("a", log_path=tmp_path / "y", resume=first.names) as second:
        second.logger.info("two")
    assert second.log_file.read_text().count("\n") == 2


def test_file_logging_enabled_at_resume_makes_a_file(tmp_path):
    with logs.open_loggers("a", run_path=tmp_path) as first:
        pass
    with logs.open_loggers("a", tmp_path, tmp_path, resume=first.names) as second:
        second.logger.info("hello")
    assert "hello" in second.log_file.read_text()
    assert second.names == {"log_file": second.log_file.name, "run_dir": first.run_dir.name}


def test_tensorboard_enabled_at_resume_makes_a_folder(tmp_path):
    with logs.open_loggers("a", log_path=tmp_path) as first:
        pass
    with logs.open_loggers("a", tmp_path, tmp_path, resume=first.names, purge_step=3) as second:
        second.writer.add_scalar("loss", 1.0, 3)
    assert second.run_dir.is_dir()
    assert second.log_file == first.log_file


def test_a_run_resumed_without_logs_keeps_their_names(tmp_path):
    with logs.open_loggers("a", tmp_path, tmp_path) as first:
        pass
    with logs.open_loggers("a", resume=first.names) as second:
        assert second.names == first.names
        assert second.log_file is None
        assert second.writer is None


def test_a_resumed_name_that_leads_elsewhere_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="log names"):
        logs.open_loggers("a", log_path=tmp_path / "logs", resume={"log_file": "../a.log"})


def test_a_bad_run_name_is_an_error_without_any_logs():
    with pytest.raises(ValueError, match="run_name"):
        logs.open_loggers("../a")


def test_other_ranks_write_no_files(tmp_path):
    with logs.open_loggers("a", tmp_path, tmp_path, rank=1) as loggers:
        logs.get_root_logger().error("hello")
        loggers.writer.add_scalar("loss", 1.0, 1)
    assert list(tmp_path.iterdir()) == []


def test_other_ranks_let_only_errors_through_and_say_who_they_are(capsys):
    with logs.open_loggers("a", rank=3):
        logs.get_root_logger().warning("careful")
        logs.get_root_logger().error("it broke")
    err = capsys.readouterr().err
    assert "careful" not in err
    assert "[ERROR] [rank 3] it broke" in err


def test_flush_makes_scalars_readable(tmp_path):
    with logs.open_loggers("a", run_path=tmp_path) as loggers:
        (events,) = loggers.run_dir.iterdir()
        before = events.stat().st_size
        loggers.writer.add_scalar("loss", 1.0, 1)
        loggers.flush()
        assert events.stat().st_size > before


def test_flush_after_close_does_nothing(tmp_path):
    loggers = logs.open_loggers("a", run_path=tmp_path)
    loggers.close()
    loggers.flush()


def test_the_root_logger_is_there_without_a_run():
    assert logs.get_root_logger() is logging.getLogger("helios")


def test_the_tensorboard_writer_is_that_of_the_open_run(tmp_path):
    with logs.open_loggers("a", run_path=tmp_path) as loggers:
        assert logs.get_tensorboard_writer() is loggers.writer


def test_there_is_no_tensorboard_writer_without_a_run():
    assert logs.get_tensorboard_writer() is None


def test_there_is_no_tensorboard_writer_when_it_is_off():
    with logs.open_loggers("a"):
        assert logs.get_tensorboard_writer() is None
